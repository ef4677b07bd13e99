"""The upper layer of one sandbox's workspace on this host, with a hard quota in bytes and inodes (needs root).

It lives in an ext4 image of the quota's size, loop-mounted here: it costs no memory and `ENOSPC` is the
kernel's. Whoever runs the sandbox mounts the overlay: Docker as a local volume, bubblewrap's engine itself.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from arsandbox.policies.model import Limits
from arsandbox.sandbox import state
from arsandbox.sandbox.engines.port import Collected
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import ChangeSet
from arsandbox.sandbox.quantities import format_size
from arsandbox.sandbox.workspace import upper as reading
from arsandbox.sandbox.workspace.overlay import Space, overlay_options, space_of, unmount_below

_RESERVE_BYTES = 64 * 1024**2
# An inode takes 256 bytes of the image: more of them than this would leave no room for content.
_BYTES_PER_INODE = 1024


class HostWorkspace:
    """An upper layer on a loop-mounted ext4 image below `scratch` (needs root)."""

    def __init__(self, scratch: Path, layers: Sequence[Path], limits: Limits, uid: int) -> None:
        self._scratch, self._layers, self._limits, self._uid = scratch, layers, limits, uid
        self._mount = scratch / "layer"
        self.upper, self.work = self._mount / "upper", self._mount / "work"

    def create(self) -> dict[str, str]:
        """Make the upper layer; returns the options of the overlay volume. Raises MachineError."""
        _require_space(self._scratch, self._limits.disk_bytes)
        inodes = min(self._limits.disk_inodes, self._limits.disk_bytes // _BYTES_PER_INODE)
        template = _template(self._limits.disk_bytes, inodes)
        image = self._scratch / "layer.img"
        _copy_data(template, image)
        self._mount.mkdir()
        _command(
            ["mount", "-o", "loop,nosuid,nodev,noatime", "-t", "ext4", str(image), str(self._mount)],
            "mount the workspace image",
        )
        for directory in (self.upper, self.work):
            directory.mkdir(mode=0o755)
            os.chown(directory, self._uid, self._uid)
        return {
            "type": "overlay",
            "device": "overlay",
            "o": overlay_options(self._layers, self.upper, self.work),
        }

    def space_now(self) -> Space:
        """How full the upper layer's file system is."""
        return space_of(self._mount)

    def space(self) -> Space | None:
        """As `space_now`; a workspace of another kind may not know."""
        return self.space_now()

    watched_space = space

    def changes(self) -> ChangeSet:
        """Scan the upper layer."""
        lowers = [str(layer) for layer in self._layers]
        return ChangeSet.model_validate(reading.Scan(str(self.upper), lowers).result())

    def collect(self, paths: Sequence[str], target: Path, *, most_bytes: int, most_files: int) -> Collected:
        """Copy declared paths out of the upper layer."""
        collector = reading.Collector(str(self.upper), str(target), most_bytes, most_files)
        for path in paths:
            collector.collect(path)
        return Collected(files=collector.files, refused=tuple(collector.refused))

    def remove(self) -> None:
        """Unmount and remove the upper layer; safe to call at any state."""
        unmount_below(self._scratch)
        reading.remove_tree(str(self._scratch))


def _copy_data(source: Path, target: Path) -> None:
    """Copy a sparse file's data, not its holes (lseek(2), SEEK_DATA). Raises MachineError."""
    try:
        with source.open("rb") as reading_from, target.open("xb") as writing_to:
            size = os.fstat(reading_from.fileno()).st_size
            os.truncate(writing_to.fileno(), size)
            place = 0
            while place < size:
                try:
                    begin = os.lseek(reading_from.fileno(), place, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    break  # only a hole is left
                place = os.lseek(reading_from.fileno(), begin, os.SEEK_HOLE)
                os.lseek(writing_to.fileno(), begin, os.SEEK_SET)
                while begin < place:
                    begin += os.sendfile(writing_to.fileno(), reading_from.fileno(), begin, place - begin)
    except OSError as error:
        raise MachineError(f"cannot copy the workspace image: {error.strerror}", hint="free some space") from error


def _template(size: int, inodes: int) -> Path:
    """An empty ext4 image of `size` bytes, made once: copying it is cheaper than mkfs each time."""
    directory = state.make_private(state.home() / "templates")
    path = directory / f"{size}-{inodes}.ext4"
    with state.exclusive(directory / "lock"):
        if not path.exists():
            fresh = directory / "fresh.ext4"
            fresh.unlink(missing_ok=True)
            with fresh.open("wb") as file:
                file.truncate(size)
            _command(
                ["mkfs.ext4", "-q", "-F", "-m", "0", "-N", str(inodes), "-O", "^has_journal,^resize_inode",
                 "-E", "lazy_itable_init=1,nodiscard", str(fresh)],
                "make the workspace image",
            )  # fmt: skip
            fresh.rename(path)
    return path


def _require_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed + _RESERVE_BYTES:
        raise MachineError(
            f"the workspace may grow to {format_size(needed)} but {directory} has {format_size(free)} free",
            hint="free some space, lower --disk, or set ARSANDBOX_HOME to a larger file system",
        )


def _command(arguments: Sequence[str], purpose: str) -> None:
    try:
        done = subprocess.run(
            arguments,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise MachineError(
            f"cannot {purpose}: {arguments[0]} is not installed",
            hint="sudo apt-get install e2fsprogs mount coreutils",
        ) from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise MachineError(f"cannot {purpose}: {lines[0]}", hint="arsandbox doctor")
