"""Mounts of workspaces on this host: overlay options, room left, and unmounting."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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
    return f"lowerdir={lower},upperdir={upper},workdir={work},userxattr,volatile,nosuid,nodev"


def space_of(path: Path | str) -> Space:
    """Room on the file system at `path`; full means that an ordinary write may fail now."""
    found = os.statvfs(path)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    # ext4 refuses a large write while up to a large folio (2 MiB) is still free.
    needed = max(64 * 1024, min(2 * 1024**2, found.f_blocks * found.f_frsize // 8))
    return Space(used, found.f_bavail * found.f_frsize < needed or found.f_favail <= 1)


def unmount_below(directory: Path) -> list[str]:
    """Unmount every mount at or below `directory`, deepest first; returns the mount points."""
    prefix = str(directory.resolve())
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split(" ")[4]
        if point == prefix or point.startswith(prefix + "/"):
            points.append(point)
    for point in sorted(points, key=len, reverse=True):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True, stdin=subprocess.DEVNULL)
    return points
