"""What stands in for an image: the host's /usr and the Python environment that arsandbox itself runs in, read-only.

Paths inside are the same on every machine but for the interpreter's own prefix: packages are seen at
`/opt/venv`. The digest names the interpreter and every installed package by the hashes in its RECORD.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from arsandbox.sandbox.models import ImageRef

NAME = "host"
VENV = "/opt/venv"


@dataclass(frozen=True)
class PythonEnvironment:
    """An interpreter (a real path), its prefix, and the directories of packages beside its own (site order)."""

    interpreter: Path
    prefix: Path
    packages: tuple[Path, ...]

    @property
    def in_usr(self) -> bool:
        """Whether the prefix is seen anyway, with the host's /usr."""
        return self.prefix == Path("/usr")

    @property
    def packages_target(self) -> str:
        """Where the packages are seen inside."""
        return f"{VENV}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"

    @property
    def configuration(self) -> str:
        """The text of pyvenv.cfg (PEP 405)."""
        system = str(sys.prefix == sys.base_prefix).lower()  # outside a venv the system's packages are the user's
        return f"home = {self.interpreter.parent}\ninclude-system-site-packages = {system}\n"


def current() -> PythonEnvironment:
    """The environment of this very process."""
    packages = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    return PythonEnvironment(
        interpreter=Path(sys.executable).resolve(),  # a venv's is a link to the one that it was made with
        prefix=Path(sys.base_prefix).resolve(),
        packages=tuple(dict.fromkeys(path for path in packages if path.is_dir())),
    )


@cache
def image() -> ImageRef:
    """The reference that records carry: name `host`, digest of interpreter and packages."""
    found = current()
    digest = hashlib.sha256(sys.version.encode())
    digest.update(hashlib.sha256(found.interpreter.read_bytes()).digest())
    rows = []
    for one in distributions(path=[str(path) for path in found.packages]):
        record = one.read_text("RECORD") or ""
        rows.append(f"{one.metadata['Name']} {one.version} {hashlib.sha256(record.encode()).hexdigest()}\n")
    digest.update("".join(sorted(rows)).encode())
    return ImageRef(name=NAME, digest=f"sha256:{digest.hexdigest()}")
