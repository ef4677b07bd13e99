"""Mounts of workspaces on this host: overlays, room left, and unmounting.

By the system calls themselves: a process for each would cost more than the mounts.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MS_NOSUID, _MS_NODEV, _MNT_DETACH = 2, 4, 2  # mount(2), umount2(2)


@dataclass(frozen=True)
class Space:
    """Room on a file system: used bytes, and whether bytes or inodes ran out."""

    used_bytes: int
    full: bool


def overlay_options(layers: Sequence[Path], upper: Path | str, work: Path | str) -> str:
    """Mount options of an overlay over `layers`, topmost first (Documentation/filesystems/overlayfs.rst).

    `volatile`: the upper never outlives the run, and flushing it would wait for other people's
    dirty pages; `userxattr`: whiteouts and opaque marks stay readable without privilege.
    """
    lower = ":".join(str(layer) for layer in layers)
    return f"{_data(lower, upper, work)},nosuid,nodev"


def mount_overlay(layers: Sequence[Path], upper: Path, work: Path, target: Path) -> None:
    """Mount the overlay of `overlay_options` at `target` (root). Raises OSError."""
    data = _data(":".join(map(str, layers)), upper, work)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"overlay", os.fsencode(target), b"overlay", _MS_NOSUID | _MS_NODEV, os.fsencode(data)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def _data(lower: str, upper: Path | str, work: Path | str) -> str:
    return f"lowerdir={lower},upperdir={upper},workdir={work},userxattr,volatile"


def space_of(path: Path | str) -> Space:
    """Room on the file system at `path`; full means that an ordinary write may fail now."""
    found = os.statvfs(path)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    # ext4 refuses a large write while up to a large folio (2 MiB) is still free.
    needed = max(64 * 1024, min(2 * 1024**2, found.f_blocks * found.f_frsize // 8))
    return Space(used, found.f_bavail * found.f_frsize < needed or found.f_favail <= 1)


def unmount_below(directory: Path) -> list[str]:
    """Unmount every mount at or below `directory`, deepest first; returns the mount points."""
    prefix = os.fsencode(directory.resolve())
    points = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # Blanks, tabs, line ends and backslashes are in octal (proc(5)).
        point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4])
        if point == prefix or point.startswith(prefix + b"/"):
            points.append(point)
    libc = ctypes.CDLL(None, use_errno=True)
    points.sort(key=len, reverse=True)
    for point in points:
        # One that stays makes the removal of its directory fail, and that is said.
        libc.umount2(point, _MNT_DETACH)
    return [os.fsdecode(point) for point in points]
