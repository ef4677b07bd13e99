"""Memory and processes of a sandbox without a cgroup: counted from /proc, several times a second. Best effort."""

from __future__ import annotations

import os
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
