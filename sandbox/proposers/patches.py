"""A queue of patches: each file of a directory, by name, at most once."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable
from pathlib import Path

from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.proposers.port import Brief, Proposal
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.state import printable

_SUFFIXES = (".patch", ".diff")
_LARGEST = 64 * 1024**2


class Patches:
    """Offers the files `*.patch` and `*.diff` of `directory` in the order of their names, also new ones.

    A file counts as tried when a record of the past bears its name and digest, unless that experiment was
    interrupted. A file that changed is another one.
    """

    name, ahead, queued = "patches", 1, True

    def __init__(self, directory: Path, past: Iterable[Record], waiting: Iterable[str] = ()) -> None:
        if not directory.is_dir():
            raise UsageError(f"--propose patches:{directory}: no such directory", hint="make it and put *.patch in it")
        self._directory = directory
        tried = (record.description for record in past if record.verdict is not Verdict.INTERRUPTED)
        self._tried = {*tried, *waiting}

    def propose(self, brief: Brief) -> Proposal | None:
        """The next file as it is. Whether it fits the champion is found out when its turn comes."""
        for path in sorted(self._directory.iterdir(), key=lambda one: one.name):
            if path.suffix not in _SUFFIXES:
                continue
            content, problem = _content(path)
            described = f"{printable(path.name)} [{hashlib.sha256(content).hexdigest()[:12]}]"
            if described in self._tried:
                continue
            self._tried.add(described)
            if problem:
                return Proposal(description=described, refusal=f"{printable(path.name)}: {problem}")
            return Proposal(diff=content, floating=True, description=described)
        return None


def _content(path: Path) -> tuple[bytes, str]:
    """The file's content, and why it is of no use ("" where it is)."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return b"", "is not a regular file"
        if found.st_size > _LARGEST:
            return b"", "is larger than 64 MiB"
        with open(path, "rb") as file:
            return file.read(_LARGEST), ""
    except OSError as error:
        return b"", f"cannot be read: {error.strerror}"
