"""Copy what stacked layers show together, for workspaces that are no overlay."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from arsandbox.sandbox.workspace.upper import exists, lower_names, open_lowers, topmost

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_merged(layers: Sequence[Path], target: int) -> int:
    """Copy the merged view of `layers` (topmost first, made by us) into the directory descriptor `target`.

    Modes and symlinks are kept. Returns the number of entries. Raises OSError, `ENOSPC` too.
    """
    opened = [os.open(layer, _DIRECTORY) for layer in layers]
    try:
        return _copy(opened, target)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def merged_size(layers: Sequence[Path]) -> tuple[int, int]:
    """Bytes (in whole pages, as a tmpfs counts) and entries that a copy of the merged view needs."""
    opened = [os.open(layer, _DIRECTORY) for layer in layers]
    try:
        return _size(opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _copy(lowers: list[int], target: int) -> int:
    count = 0
    for name in sorted(lower_names(lowers)):
        found = topmost(lowers, name)
        if found is None:
            continue
        count += 1
        if stat.S_ISDIR(found.st_mode):
            inner: list[int] = []
            os.mkdir(name, 0o755, dir_fd=target)
            below = os.open(name, _DIRECTORY, dir_fd=target)
            try:
                open_lowers(lowers, name, inner)
                count += _copy(inner, below)
            finally:
                for descriptor in (below, *inner):
                    os.close(descriptor)
        else:
            _copy_one(next(lower for lower in lowers if exists(lower, name)), name, found, target)
    return count


def _copy_one(lower: int, name: bytes, found: os.stat_result, target: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=lower), name, dir_fd=target)
        return
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=lower)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    copy = os.open(name, flags, stat.S_IMODE(found.st_mode) & 0o777, dir_fd=target)
    with os.fdopen(source, "rb") as reader, os.fdopen(copy, "wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _size(lowers: list[int]) -> tuple[int, int]:
    size = count = 0
    for name in lower_names(lowers):
        found = topmost(lowers, name)
        if found is None:
            continue
        count += 1
        size += -(-found.st_size // 4096) * 4096 if stat.S_ISREG(found.st_mode) else 4096
        if stat.S_ISDIR(found.st_mode):
            inner: list[int] = []
            try:
                open_lowers(lowers, name, inner)
                more, entries = _size(inner)
            finally:
                for descriptor in inner:
                    os.close(descriptor)
            size, count = size + more, count + entries
    return size, count
