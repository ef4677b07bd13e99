"""Which files of a large working tree are known to be unchanged, without reading them again.

As git's own index does: a file whose size, times, inode and mode are those of the last reading still has
the content that was read then. The inode's change time cannot be set by a program, and an entry is kept
only when that time is well in the past, so that a second write within the clock's resolution is not missed.
A stale answer could at worst leave an edit out of the candidate; what is measured is what is promoted.
"""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path

_SETTLED_NS = 2_000_000_000


class StatCache:
    """Blob ids by path for one working tree, kept in `file`; a damaged file is an empty cache."""

    def __init__(self, file: Path, worktree: Path) -> None:
        self._file, self._worktree = file, worktree
        self._changed = False
        try:
            rows = json.loads(file.read_text())
            self._known: dict[str, list[object]] = rows if isinstance(rows, dict) else {}
        except (OSError, ValueError, RecursionError):
            self._known = {}

    def holds(self, path: str, mode: str, blob: str) -> bool:
        """Whether the file at `path` is known to have git mode `mode` and the content of `blob`."""
        known = self._known.get(path)
        return known is not None and known == self._row(path, mode, blob)

    def remember(self, path: str, mode: str, blob: str) -> None:
        """Note that the file at `path` was just read, with that result, unless it is too fresh to be sure."""
        row = self._row(path, mode, blob)
        if row is not None and time.time_ns() - int(str(row[2])) > _SETTLED_NS:
            self._known[path] = row
            self._changed = True

    def save(self) -> None:
        """Write the cache if it has changed; failing to is no failure."""
        if not self._changed:
            return
        fresh = self._file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            fresh.write_text(json.dumps(self._known))
            fresh.rename(self._file)
        except (OSError, ValueError):
            fresh.unlink(missing_ok=True)

    def _row(self, path: str, mode: str, blob: str) -> list[object] | None:
        try:
            found = os.lstat(self._worktree / path)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_mode, mode, blob]
