"""Trust L1: the evaluator's files are, by hash, the base commit's, before the run and after it.

The number is still one that the candidate's own process printed: L1 says that the code which should have
computed it was there unchanged, not that it did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.workspace.layers import SYMLINK_MODE, is_below


def changed_files(objects: ObjectStore, base: str, layers: Sequence[Path], paths: Sequence[str]) -> list[str]:
    """The files of `base` at or below `paths` that the workspace's `layers` (topmost first) do not show as they are."""
    found = []
    for entry in objects.entries(objects.tree_of(base)):
        if is_below(entry.path, paths) and _shown_blob(layers, entry.path, entry.mode, len(entry.blob)) != entry.blob:
            found.append(entry.path)
    return found


def _shown_blob(layers: Sequence[Path], path: str, mode: str, digits: int) -> str | None:
    """The id of the git blob that the workspace shows at `path`, None where it shows no such file."""
    for layer in layers:
        place = layer / path
        if not place.is_symlink() and not place.exists():
            continue
        if place.is_symlink() != (mode == SYMLINK_MODE) or not (place.is_symlink() or place.is_file()):
            return None
        content = str(place.readlink()).encode("utf-8", "surrogateescape") if place.is_symlink() else place.read_bytes()
        digest = hashlib.sha1(usedforsecurity=False) if digits == 40 else hashlib.sha256()  # git's object formats
        digest.update(b"blob %d\0" % len(content))
        digest.update(content)
        return digest.hexdigest()
    return None
