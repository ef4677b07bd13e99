"""A cgroup of each sandbox's own, with hard limits: as root on v1 and v2, as a user where systemd delegates one.

Formats: Documentation/admin-guide/cgroup-v1/*.rst and cgroup-v2.rst. Without a cgroup memory and processes are
limited as well as a user can (see box.py), and the engine says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from arsandbox.policies.model import Limits
from arsandbox.sandbox.engines.cgroup import mounts
from arsandbox.sandbox.errors import MachineError

_PARENT = "arsandbox"
_CONTROLLERS = ("memory", "pids", "cpu", "cpuset")
_PERIOD_US = 100_000
# A killed process is gone sooner, unless the kernel holds it.
_ENDS_S = 5.0
_ENDED = Path("cgroup.procs")


class BoxCgroup:
    """One cgroup (v2), or one of the same name in each hierarchy (v1)."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self.directories = dict(directories)

    @classmethod
    def create(cls, name: str, limits: Limits, *, cores: str, memory_nodes: str) -> BoxCgroup | None:
        """Make it and set its limits; None where this process may not. Raises MachineError when that fails."""
        parents = places()
        if not parents:
            return None
        made = cls({controller: parent / name for controller, parent in parents.items()})
        try:
            for directory in made.directories.values():
                directory.mkdir(exist_ok=True)
            if "" in parents:
                _limit_v2(made.directories[""], limits, cores, memory_nodes)
            else:
                _limit_v1(made.directories, limits, cores, memory_nodes)
        except OSError as error:
            made.remove()
            where = error.filename or name
            raise MachineError(
                f"cannot make the sandbox's cgroup {where}: {error.strerror}", hint="arsandbox doctor"
            ) from error
        return made

    def add(self, pid: int) -> None:
        """Move process `pid` (and what it will fork) into it. Raises OSError."""
        for directory in self.directories.values():
            _write(directory / _ENDED, str(pid))

    def remove(self) -> bool:
        """Remove the directories; what is still running in them is killed first. Safe to repeat.

        False where one stays: a process in it does not end.
        """
        gone = True
        for directory in self.directories.values():
            end = time.monotonic() + _ENDS_S
            while directory.exists():
                _kill_members(directory)
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > end:
                        gone = False
                        break
                    time.sleep(0.005)
        return gone


def places() -> dict[str, Path]:
    """The directories below which sandboxes' cgroups can be made: controller to directory, "" for v2; else empty."""
    found = mounts()
    if "memory" in found and "pids" in found:
        return _places_v1(found) if os.geteuid() == 0 else {}
    if "" not in found:
        return {}
    parent = found[""] / _PARENT if os.geteuid() == 0 else _delegated(found[""])
    return {"": parent} if parent is not None and _enable(found[""], parent) else {}


def _places_v1(found: Mapping[str, Path]) -> dict[str, Path]:
    parents = {name: found[name] / _PARENT for name in (*_CONTROLLERS, "cpuacct") if name in found}
    try:
        for name, parent in parents.items():
            parent.mkdir(exist_ok=True)
            if name == "cpuset":  # empty in a new cgroup, and nothing can run in an empty one
                for file in ("cpuset.cpus", "cpuset.mems"):
                    if not (parent / file).read_text().strip():
                        _write(parent / file, (found[name] / file).read_text())
    except OSError:
        return {}
    return parents


def _delegated(root: Path) -> Path | None:
    """The cgroup that systemd delegated to this process (`systemd-run --user --scope -p Delegate=yes`), or None.

    Processes may live in leaves only: this one moves into a leaf of its own first.
    """
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    here = root / own.lstrip("/")
    if here.name == "controller":
        return here.parent
    try:
        available = (here / "cgroup.controllers").read_text().split()
        if own == "/" or not {"memory", "pids"} <= set(available) or not os.access(here, os.W_OK):
            return None
        leaf = here / "controller"
        leaf.mkdir(exist_ok=True)
        for pid in (here / _ENDED).read_text().split():
            _write(leaf / _ENDED, pid)
    except OSError:
        return None
    return here


def _enable(root: Path, parent: Path) -> bool:
    """Let `parent` and its children use the controllers that limits need; False where that is refused."""
    try:
        parent.mkdir(exist_ok=True)
        for directory in (root, parent) if parent.parent == root else (parent,):
            offered = (directory / "cgroup.controllers").read_text().split()
            wanted = [name for name in _CONTROLLERS if name in offered]
            _write(directory / "cgroup.subtree_control", " ".join(f"+{name}" for name in wanted))
        return {"memory", "pids"} <= set((parent / "cgroup.subtree_control").read_text().split())
    except OSError:
        return False


def _limit_v1(directories: Mapping[str, Path], limits: Limits, cores: str, memory_nodes: str) -> None:
    memory = directories["memory"]
    _write(memory / "memory.limit_in_bytes", str(limits.memory_bytes))
    _write_where_offered(memory / "memory.memsw.limit_in_bytes", str(limits.memory_bytes))
    _write_where_offered(memory / "memory.swappiness", "0")
    _write(directories["pids"] / "pids.max", str(limits.pids))
    if "cpu" in directories:
        _write(directories["cpu"] / "cpu.cfs_period_us", str(_PERIOD_US))
        _write(directories["cpu"] / "cpu.cfs_quota_us", str(int(limits.cpus * _PERIOD_US)))
    if "cpuset" in directories:
        place = directories["cpuset"]
        _write(place / "cpuset.cpus", cores or (place.parent / "cpuset.cpus").read_text())
        _write(place / "cpuset.mems", memory_nodes or (place.parent / "cpuset.mems").read_text())


def _limit_v2(place: Path, limits: Limits, cores: str, memory_nodes: str) -> None:
    _write(place / "memory.max", str(limits.memory_bytes))
    _write_where_offered(place / "memory.swap.max", "0")
    _write_where_offered(place / "memory.oom.group", "1")
    _write(place / "pids.max", str(limits.pids))
    _write_where_offered(place / "cpu.max", f"{int(limits.cpus * _PERIOD_US)} {_PERIOD_US}")
    if cores:
        _write_where_offered(place / "cpuset.cpus", cores)
        _write_where_offered(place / "cpuset.mems", memory_nodes)


def _kill_members(directory: Path) -> None:
    _write_where_offered(directory / "cgroup.kill", "1")
    try:
        members = (directory / _ENDED).read_text().split()
    except OSError:
        return
    for pid in members:
        try:
            os.kill(int(pid), 9)
        except ProcessLookupError:
            continue


def _write_where_offered(path: Path, text: str) -> None:
    if path.exists():
        _write(path, text)


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # never creates: cgroupfs has its files already
    try:
        os.write(descriptor, text.strip().encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)
