"""Scratch space for a build: in memory where that is possible, else beside the layer cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arsandbox.sandbox import state

MEMORY = Path("/dev/shm")  # noqa: S108 - only ever a folder of our own with a random name in it
ROOM_BYTES = 2 * 1024**3
_PREFIX = "arsandbox-image-"


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards.

    In memory if /dev/shm exists, has 2 GiB free and allows programs to run; else in `beside`.
    Unpacking thousands of small files there is what makes a build take seconds.
    """
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=_PREFIX, dir=MEMORY if _usable(MEMORY) else beside, ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        # An ordinary user's mmdebstrap works under other uids, which must be able to pass (not to list).
        folder.chmod(0o711)
        with state.owned(folder):
            yield folder


def folders(beside: Path) -> list[Path]:
    """All scratch folders there are, of living builds and of killed ones."""
    return [path for place in (MEMORY, beside) for path in sorted(place.glob(f"{_PREFIX}*"))]


def _usable(folder: Path) -> bool:
    try:
        free = shutil.disk_usage(folder).free
        flags = os.statvfs(folder).f_flag
    except OSError:
        return False
    return free >= ROOM_BYTES and not flags & os.ST_NOEXEC and os.access(folder, os.W_OK)
