"""Memory and processes of a sandbox without a cgroup: counted from /proc, several times a second. Best effort."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from arsandbox.sandbox.engines.cgroup import Readings

_TMPFS = ("tmp", "dev/shm")


class NamespacePoll:
    """Counts what runs in the PID namespace of process `pid`; memory in a tmpfs counts, too."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._namespace = os.readlink(f"/proc/{pid}/ns/pid")
        self.readings = Readings()

    def read(self) -> Readings:
        """Update and return the readings: proportional set size of every process, plus its tmpfs files."""
        memory = count = 0
        for name in os.listdir("/proc"):
            if name.isdigit() and self._inside(name):
                count += 1
                memory += _proportional_set_size(name)
        for name in _TMPFS:
            try:
                found = os.statvfs(f"/proc/{self._pid}/root/{name}")
            except OSError:
                continue
            memory += (found.f_blocks - found.f_bfree) * found.f_frsize
        now = self.readings
        now.memory_bytes = memory
        now.peak_memory_bytes = max(now.peak_memory_bytes, memory)
        now.peak_pids = max(now.peak_pids, count)
        return now

    def kill(self, *, seconds: float = 2.0) -> bool:
        """SIGKILL to every process in it; True once there is none, False if that took too long.

        Process 1 would take the others with it, but under a fork bomb it waits for its turn among them.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            members = [name for name in os.listdir("/proc") if name.isdigit() and self._killed(name)]
            if not members:
                return True
            time.sleep(0.002)
        return False

    def _killed(self, name: str) -> bool:
        """Whether process `name` was one of it. By a descriptor: a number may belong to another by then."""
        if not self._inside(name):
            return False
        try:
            descriptor = os.pidfd_open(int(name))
        except ProcessLookupError:
            return True
        try:
            if self._inside(name):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself
        finally:
            os.close(descriptor)
        return True

    def _inside(self, pid: str) -> bool:
        try:
            return os.readlink(f"/proc/{pid}/ns/pid") == self._namespace
        except OSError:
            return False  # somebody else's, or gone


def _proportional_set_size(pid: str) -> int:
    """Bytes, shared pages divided among those who share them (proc(5), smaps_rollup)."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(("Pss:", "SwapPss:")))
