"""Versions with known holes, and whether the installed one has the fix: by the distribution's word where it backports.

Distributions fix old versions without a new number: Debian's runc 1.1.5+ds1-1+deb12u1 has the fix that upstream made
in 1.1.12. So the package's version is asked first, and upstream's number only where no package is known.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Literal

from pydantic import Field

from arsandbox.sandbox.models import Model

Certainty = Literal["fixed", "broken", "unknown"]


class Advisory(Model):
    """A hole: in which program, the upstream releases with the fix, and Debian's packages with the fix.

    `fixed`: the first fixed release of each line, oldest line first; `debian`: first fixed version by the
    upstream version that it is built from (dpkg's order).
    """

    cve: str
    program: str
    fixed: tuple[str, ...]
    debian: dict[str, str] = Field(default_factory=dict)


TOOLKIT = "nvidia-ctk"
# The version of a program that does not say one.
UNKNOWN = "unknown"

ADVISORIES = (
    Advisory(
        cve="CVE-2024-21626",
        program="runc",
        fixed=("1.1.12",),
        debian={"1.1.5": "1.1.5+ds1-1+deb12u1", "1.0.0": "1.0.0~rc93+ds1-5+deb11u3"},
    ),
    # Debian's fixes for older lines are not known here: they are a warning, not a verdict.
    Advisory(
        cve="CVE-2025-31133, CVE-2025-52565, CVE-2025-52881", program="runc", fixed=("1.2.8", "1.3.3", "1.4.0-rc.3")
    ),
    # NVIDIA's security bulletins of September 2024, January 2025 and July 2025 (its support answers 5582, 5616, 5659).
    Advisory(cve="CVE-2024-0132, CVE-2024-0133", program=TOOLKIT, fixed=("1.16.2",)),
    Advisory(cve="CVE-2025-23359", program=TOOLKIT, fixed=("1.17.4",)),
    Advisory(cve="CVE-2025-23266, CVE-2025-23267", program=TOOLKIT, fixed=("1.17.8",)),
)


def judge(advisory: Advisory, version: str, package: str | None = None) -> Certainty:
    """Whether `version` has the fix; `package` is the distribution's version of it, where it is installed as one."""
    number = _numbers(version)
    if number is None:
        return "unknown"
    lines = sorted(_numbers(fix) or () for fix in advisory.fixed)
    if any(number >= fix and (number[:2] == fix[:2] or fix == lines[-1]) for fix in lines):
        return "fixed"
    if package is None or package == version:
        return "broken"
    known = next((fix for upstream, fix in advisory.debian.items() if package.startswith(upstream)), None)
    if known is None:
        return "unknown"  # the distribution may have backported it
    return "fixed" if _at_least(package, known) else "broken"


def runc_version() -> tuple[str, str | None] | None:
    """(version, Debian package's version or None) of the runc that is on PATH; None without one."""
    return _installed("runc", ["--version"])


def toolkit_version() -> tuple[str, str | None] | None:
    """(version, None) of NVIDIA's container toolkit: its packages are NVIDIA's own, so upstream's number counts."""
    for program, option in ((TOOLKIT, "--version"), ("nvidia-container-runtime-hook", "-version")):
        path = shutil.which(program)
        if path is not None:
            return (_version([path, option]), None)
    return None


def toolkit_holes() -> list[Advisory]:
    """The known holes that the installed toolkit certainly has, oldest first; none where there is no toolkit."""
    installed = toolkit_version()
    if installed is None:
        return []
    return [one for one in ADVISORIES if one.program == TOOLKIT and judge(one, *installed) == "broken"]


def _installed(program: str, arguments: list[str]) -> tuple[str, str | None] | None:
    path = shutil.which(program)
    if path is None:
        return None
    owner = (_output(["dpkg-query", "--search", path]) or "").partition(":")[0]
    package = _output(["dpkg-query", "--show", "--showformat=${Version}", owner]) if owner else None
    return (_version([path, *arguments]), package or None)


def _version(command: list[str]) -> str:
    found = re.search(r"\bversion ([0-9][0-9A-Za-z.+~-]{0,63})(?![0-9A-Za-z.+~-])", _output(command) or "")
    return found[1] if found else UNKNOWN


def _output(arguments: list[str]) -> str | None:
    try:
        done = subprocess.run(arguments, capture_output=True, check=False, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None  # not a Debian, or the program does not answer: nothing is known of a package
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def _at_least(version: str, least: str) -> bool:
    return _output(["dpkg", "--compare-versions", version, "ge", least]) is not None


def _numbers(version: str) -> tuple[int, ...] | None:
    """A version in order: (major, minor, patch, candidate); a release comes after its candidates."""
    found = re.match(r"([0-9]+)\.([0-9]+)\.([0-9]+)(?:[-~]rc\.?([0-9]+))?", version)
    if found is None:
        return None
    return (*(int(part) for part in found.groups()[:3]), int(found[4]) if found[4] else 1_000_000)
