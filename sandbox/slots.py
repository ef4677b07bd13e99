"""Who may train now: one training stage a slot, in the order of the rounds, the next one ready at the gate."""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol


class NotBegun(Exception):  # noqa: N818 - no failure
    """A measurement waited for its turn and is not to begin any more: nothing of it has run."""


class Superseded(NotBegun):
    """The champion moved before a measurement began: it is to be planned anew."""


class TrainingSlots(Protocol):
    """Where a measurement gets its leave to train."""

    @property
    def ahead(self) -> bool:
        """Whether a sandbox may be made before its turn, not in it."""

    def take(self) -> AbstractContextManager[Slot]:
        """Wait for a slot and hold it. Raises NotBegun if what waits is not to begin any more."""


class Slot:
    """Leave to train; it is given back when the measurement ends, or already when its training does."""

    def __init__(self, slots: Slots, release: Callable[[], None], last_end: float | None) -> None:
        self._slots, self._release, self._last_end = slots, release, last_end
        self.gap_s: float | None = None

    def trained(self, started: float, ended: float) -> None:
        """A training stage ran in this slot from `started` to `ended` (monotonic clock)."""
        if self._last_end is not None:
            self.gap_s = max(0.0, started - self._last_end)
        self._slots.ended(ended)
        if self._slots.overlap:
            self._release()


class Slots:
    """`count` measurements at a time.

    `overlap` lets the next training begin while the artifacts of the one before are still evaluated:
    only right where that takes no processor from it. `ahead`: a sandbox is made before its turn, not in it.
    `stop` is asked while waiting, and may raise.
    """

    def __init__(
        self, count: int, *, overlap: bool, ahead: bool = True, stop: Callable[[], None] = lambda: None
    ) -> None:
        self.overlap, self.ahead = overlap, ahead
        self._free, self._waiting = count, list[int]()
        self._changed = threading.Condition()
        self._stop = stop
        self._ends: list[float] = []
        self._lock = threading.Lock()

    @contextmanager
    def take(self, order: int = 0) -> Iterator[Slot]:
        """Wait for a slot and hold it; of those that wait the lowest `order` comes first."""
        self._acquire(order)
        released = threading.Event()

        def release() -> None:
            if not released.is_set():
                released.set()
                with self._changed:
                    self._free += 1
                    self._changed.notify_all()

        with self._lock:
            last = self._ends.pop(0) if self._ends else None
        try:
            yield Slot(self, release, last)
        finally:
            release()

    def _acquire(self, order: int) -> None:
        with self._changed:
            insort(self._waiting, order)
            try:
                while not (self._free and self._waiting[0] == order):
                    self._changed.wait(0.2)
                    self._stop()
                self._free -= 1
            finally:
                self._waiting.remove(order)
                self._changed.notify_all()

    def ended(self, at: float) -> None:
        """A training stage has ended at `at`."""
        with self._lock:
            self._ends.append(at)


class Turn:
    """One measurement's turn to train: waited for as late as can be, and kept until the measurement ends."""

    def __init__(self, slots: TrainingSlots | None, held: ExitStack) -> None:
        self._slots, self._held = slots, held
        self._slot: Slot | None = None
        self.waited_s = 0.0
        if slots is not None and not slots.ahead:
            self.wait()

    def wait(self) -> None:
        """Return when it has come; at once where nobody takes turns, or where it came before."""
        if self._slots is not None and self._slot is None:
            began = time.monotonic()
            self._slot = self._held.enter_context(self._slots.take())
            self.waited_s += time.monotonic() - began

    def trained(self, started: float, ended: float) -> None:
        """The training ran from `started` to `ended` (monotonic clock)."""
        if self._slot is not None:
            self._slot.trained(started, ended)

    @property
    def gap_s(self) -> float | None:
        """Seconds in which nothing trained in this slot before this training; None for the first one."""
        return self._slot.gap_s if self._slot is not None else None


@contextmanager
def turn(slots: TrainingSlots | None) -> Iterator[Turn]:
    """A turn that is given back at the end."""
    with ExitStack() as held:
        yield Turn(slots, held)
