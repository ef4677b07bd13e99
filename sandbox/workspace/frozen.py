"""What a directory of ours holds, to compare with what was written down: every file, and nothing but files."""

from __future__ import annotations

import os
from pathlib import Path

from arsandbox.sandbox.errors import RefusedError
from arsandbox.sandbox.workspace.upper import sha256_of


def digests(directory: Path) -> dict[str, str]:
    """Path (relative) to hex SHA-256 of every file below `directory`.

    Raises RefusedError for a symlink or anything else that is neither file nor directory.
    """
    found: dict[str, str] = {}
    for place, directories, names in os.walk(directory, followlinks=False):
        for name in [*directories, *names]:
            path = Path(place) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise RefusedError(f"{path} has no place there: only files and directories were frozen")
        for name in names:
            path = Path(place) / name
            found[str(path.relative_to(directory))] = sha256_of(path)
    return found


def require_equal(found: dict[str, str], expected: dict[str, str], what: str) -> None:
    """Raises RefusedError naming `what` and the first file that was changed, added or removed."""
    for path in sorted(found.keys() | expected.keys()):
        if found.get(path) != expected.get(path):
            kind = "added" if path not in expected else "removed" if path not in found else "changed"
            raise RefusedError(f"{what} was changed: {path} was {kind}")
