"""Processor cores for one sandbox at a time: whole physical cores, no sharing, leased by lock."""

from __future__ import annotations

import os
from pathlib import Path

from arsandbox.sandbox import state

_CPU = Path("/sys/devices/system/cpu")


class Cores:
    """Logical processors leased until `release` or death. `listing` is the kernel's list format."""

    def __init__(self, numbers: tuple[int, ...], locks: list[state.Lock]) -> None:
        self.numbers = numbers
        self._locks = locks

    @property
    def listing(self) -> str:
        """The processors as `0,1`; empty when none could be leased."""
        return ",".join(str(number) for number in self.numbers)

    @property
    def memory_nodes(self) -> str:
        """The memory nodes of the processors, as `0`; empty when none were leased."""
        nodes = {path.name[4:] for number in self.numbers for path in (_CPU / f"cpu{number}").glob("node[0-9]*")}
        return ",".join(sorted(nodes, key=int))

    @classmethod
    def take(cls, count: float) -> Cores:
        """Lease enough whole physical cores for `count` processors' worth of time; none if too few are free.

        A physical core is leased with all its siblings, so that no other leased sandbox shares it.
        """
        directory = state.make_private(state.machine_locks() / "cores")
        wanted = max(1, -int(-count // 1))
        numbers: list[int] = []
        locks: list[state.Lock] = []
        for core in _physical_cores():
            if len(numbers) >= wanted:
                break
            lock = state.Lock.try_take(directory / str(core[0]))
            if lock is not None:
                locks.append(lock)
                numbers += core
        held = cls(tuple(sorted(numbers)), locks)
        if len(numbers) >= wanted:
            return held
        held.release()
        return cls((), [])

    def release(self) -> None:
        """Give them back."""
        for lock in self._locks:
            lock.close()
        self._locks = []


def _physical_cores() -> list[tuple[int, ...]]:
    """Each physical core's logical processors, of those that this process may use."""
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(number) for number in allowed}
    return sorted(core for core in cores if set(core) <= allowed)


def _siblings(number: int) -> tuple[int, ...]:
    try:
        text = (_CPU / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return (number,)
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))
