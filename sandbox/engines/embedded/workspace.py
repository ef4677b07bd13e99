"""The workspace of an embedded sandbox: an overlay with a quota where we are root, else a copy in a sized tmpfs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from arsandbox.sandbox.engines.embedded.arguments import WORKSPACE
from arsandbox.sandbox.engines.host_workspace import HostWorkspace
from arsandbox.sandbox.engines.port import Collected, SandboxSpec
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import ChangeSet
from arsandbox.sandbox.quantities import format_size
from arsandbox.sandbox.workspace import upper as reading
from arsandbox.sandbox.workspace.merged import copy_merged, merged_size
from arsandbox.sandbox.workspace.overlay import Space, mount_overlay, space_of

_SETUP_S = 10.0
# A copy is made for every sandbox, and held in memory.
MOST_COPIED_BYTES = 1024**3


class Workspace(Protocol):
    """What a sandbox works in, from before it exists until after it has ended."""

    def create(self, seen: Callable[[Path], str]) -> list[str]:
        """Make it; returns bwrap's arguments that mount it. Raises MachineError."""

    def fill(self, pid: int) -> None:
        """Called when process 1 (`pid`) waits, before the command: put in what is not there yet."""

    def space(self) -> Space:
        """How full it is."""

    def changes(self) -> ChangeSet:
        """What the run changed."""

    def collect(self, paths: Sequence[str], target: Path, *, most_bytes: int, most_files: int) -> Collected:
        """Copy declared paths out."""

    def remove(self) -> None:
        """Remove it; safe to call at any state."""


class OverlayWorkspace:
    """An overlay over the layers, its upper on a loop-mounted image of the quota's size (root)."""

    def __init__(self, spec: SandboxSpec, uid: int) -> None:
        self._upper = HostWorkspace(spec.scratch, spec.layers, spec.limits, uid)
        self._merged, self._layers = spec.scratch / "merged", spec.layers
        self.space = self._upper.space_now
        self.changes, self.collect, self.remove = self._upper.changes, self._upper.collect, self._upper.remove

    def create(self, seen: Callable[[Path], str]) -> list[str]:
        """See Workspace."""
        self._upper.create()
        self._merged.mkdir()
        try:
            mount_overlay(self._layers, self._upper.upper, self._upper.work, self._merged)
        except OSError as error:
            raise MachineError(
                f"cannot mount the workspace: {error.strerror}", hint="set ARSANDBOX_HOME to a directory on ext4 or xfs"
            ) from error
        return ["--bind", seen(self._merged), WORKSPACE]

    def fill(self, pid: int) -> None:
        """See Workspace: the overlay shows everything already."""


class CopyWorkspace:
    """A tmpfs of the quota's size in the sandbox, filled through its process 1 and read through a descriptor.

    The descriptor keeps the file system alive after the sandbox has died. Its bytes are limited, its inodes are
    not: bwrap has no option for them.
    """

    def __init__(self, spec: SandboxSpec) -> None:
        self._layers, self._limits = spec.layers, spec.limits
        self._root = -1
        self._copied = self._base_bytes = self._size = 0

    def create(self, seen: Callable[[Path], str]) -> list[str]:
        """See Workspace."""
        needed, _ = merged_size(self._layers)
        if needed > MOST_COPIED_BYTES:
            raise MachineError(
                f"the repository has {format_size(needed)}; without root the embedded engine copies it into memory,"
                f" up to {format_size(MOST_COPIED_BYTES)}",
                hint="run as root, or use --engine docker",
            )
        self._size = needed + self._limits.disk_bytes
        return ["--perms", "0755", "--size", str(self._size), "--tmpfs", WORKSPACE]

    def fill(self, pid: int) -> None:
        """See Workspace. Raises MachineError when the workspace does not appear."""
        place = f"/proc/{pid}/root{WORKSPACE}"
        end = time.monotonic() + _SETUP_S
        while not self._appeared(place):
            if time.monotonic() > end:
                raise MachineError("the sandbox's workspace did not appear", hint="arsandbox doctor")
            time.sleep(0.002)
        self._root = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._copied = copy_merged(self._layers, self._root)
        self._base_bytes = space_of(self._place).used_bytes

    def space(self) -> Space:
        """See Workspace."""
        found = space_of(self._place)
        return Space(max(0, found.used_bytes - self._base_bytes), found.full)

    def changes(self) -> ChangeSet:
        """See Workspace."""
        lowers = [str(layer) for layer in self._layers]
        return ChangeSet.model_validate(reading.Scan(self._place, lowers, copied=self._copied).result())

    def collect(self, paths: Sequence[str], target: Path, *, most_bytes: int, most_files: int) -> Collected:
        """See Workspace."""
        collector = reading.Collector(self._place, str(target), most_bytes, most_files)
        for path in paths:
            collector.collect(path)
        for name, digest in list(collector.files.items()):
            if digest == self._base_digest(name):  # an overlay's upper layer would not hold it either
                (target / name).unlink()
                del collector.files[name]
        return Collected(files=collector.files, refused=tuple(collector.refused))

    def remove(self) -> None:
        """See Workspace."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _base_digest(self, name: str) -> str | None:
        """The SHA-256 of the file that the layers show under `name`, or None."""
        for layer in self._layers:
            path = layer / name
            if os.path.lexists(path):
                return reading.sha256_of(path) if path.is_file() and not path.is_symlink() else None
        return None

    @property
    def _place(self) -> str:
        return f"/proc/self/fd/{self._root}/."  # the dot: whoever opens it may refuse to follow the link before it

    def _appeared(self, place: str) -> bool:
        """Whether that is the tmpfs of our size, in the sandbox's final root: until then it is the host's root."""
        try:
            found = os.statvfs(place)
            return found.f_blocks * found.f_frsize == -(-self._size // found.f_frsize) * found.f_frsize
        except OSError:
            return False
