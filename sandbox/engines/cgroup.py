"""A sandbox's cgroup, read and killed from the host, on v1, hybrid and v2.

Files: Documentation/admin-guide/cgroup-v1/{memory,pids}.rst and cgroup-v2.rst. Reading needs no
privilege; killing needs root.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Readings:
    """Last and highest values seen; zeros where the kernel offers no such file."""

    memory_bytes: int = 0
    peak_memory_bytes: int = 0
    cpu_s: float = 0.0
    peak_pids: int = 0
    oom_kills: int = 0
    pids_refused: int = 0


class Cgroup:
    """The cgroup that process `pid` is in when this is made. Files stay open: a reading is a few pread."""

    def __init__(self, pid: int) -> None:
        self.readings = Readings()
        self._files: dict[str, int] = {}
        self._version2: Path | None = None
        self._kill_directories: list[Path] = []
        mounted = mounts()
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if path == "/":
                continue  # not a cgroup of its own: nothing here is the sandbox's alone
            for controller in controllers.split(",") if controllers else [""]:
                mount = mounted.get(controller)
                if mount is not None:
                    self._open(controller, mount / path.lstrip("/"))

    @property
    def readable(self) -> bool:
        """Whether the memory controller's files could be opened."""
        return "memory" in self._files

    def read(self) -> Readings:
        """Update and return the readings; after the cgroup's removal they keep their last values."""
        now = self.readings
        now.memory_bytes = self._number("memory") or now.memory_bytes
        now.peak_memory_bytes = max(now.peak_memory_bytes, self._number("memory_peak") or 0, now.memory_bytes)
        now.peak_pids = max(now.peak_pids, self._number("pids_peak") or 0, self._number("pids") or 0)
        now.oom_kills = max(now.oom_kills, self._field("memory_events", "oom_kill"))
        now.pids_refused = max(now.pids_refused, self._field("pids_events", "max"))
        nanoseconds, microseconds = self._number("cpu_ns"), self._field("cpu_stat", "usage_usec")
        now.cpu_s = max(now.cpu_s, (nanoseconds or 0) / 1e9, microseconds / 1e6)
        return now

    def kill(self, *, seconds: float = 2.0) -> bool:
        """SIGKILL everything in it (root only); True once it is empty, False if that took too long."""
        end = time.monotonic() + seconds
        if self._version2 is not None and (self._version2 / "cgroup.kill").exists():
            _write(self._version2 / "cgroup.kill", "1")
        while time.monotonic() < end:
            members = self._members()
            if not members:
                return True
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                except PermissionError:
                    return False
            time.sleep(0.002)
        return False

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _members(self) -> list[int]:
        for directory in self._kill_directories:
            try:
                return [int(line) for line in (directory / "cgroup.procs").read_text().split()]
            except OSError:
                continue
        return []

    def _open(self, controller: str, directory: Path) -> None:
        if controller == "":
            if not (directory / "memory.events").exists():
                return  # the v2 half of a hybrid set-up holds no controllers
            self._version2 = directory
            names = {
                "memory": "memory.current", "memory_peak": "memory.peak", "memory_events": "memory.events",
                "pids": "pids.current", "pids_peak": "pids.peak", "pids_events": "pids.events",
                "cpu_stat": "cpu.stat",
            }  # fmt: skip
        else:
            names = _VERSION1.get(controller, {})
        if names:
            self._kill_directories.append(directory)
        for name, file in names.items():
            try:
                self._files[name] = os.open(directory / file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # an older kernel lacks pids.peak and memory.peak

    def _text(self, name: str) -> str | None:
        descriptor = self._files.get(name)
        if descriptor is None:
            return None
        try:
            return os.pread(descriptor, 4096, 0).decode()
        except OSError:
            return None  # removed with the container

    def _number(self, name: str) -> int | None:
        text = self._text(name)
        return int(text) if text and text.strip().isdigit() else None

    def _field(self, name: str, key: str) -> int:
        for line in (self._text(name) or "").splitlines():
            field, _, value = line.partition(" ")
            if field == key and value.isdigit():
                return int(value)
        return 0


_VERSION1 = {
    "memory": {
        "memory": "memory.usage_in_bytes",
        "memory_peak": "memory.max_usage_in_bytes",
        "memory_events": "memory.oom_control",
    },
    "pids": {"pids": "pids.current", "pids_peak": "pids.peak", "pids_events": "pids.events"},
    "cpuacct": {"cpu_ns": "cpuacct.usage"},
}


def mounts() -> dict[str, Path]:
    """Controller name to mount point; the empty name is the unified hierarchy."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        point = Path(fields.split(" ")[4])
        if kind == "cgroup2":
            found.setdefault("", point)
        elif kind == "cgroup":
            for option in options.split(" ")[-1].split(","):
                found.setdefault(option, point)
    return found


def version() -> str:
    """`v2`, `v1` or `hybrid`, as mounted here."""
    mounted = mounts()
    if "" in mounted and (mounted[""] / "cgroup.controllers").exists() and "memory" not in mounted:
        return "v2"
    return "hybrid" if "" in mounted else "v1"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError:
        return  # not root, or gone: the caller looks at the members next
