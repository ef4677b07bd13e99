"""Who may train now: one training stage a slot, the next one ready at the gate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


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
        self._free = threading.Semaphore(count)
        self._stop = stop
        self._ends: list[float] = []
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[Slot]:
        """Wait for a slot and hold it."""
        while not self._free.acquire(timeout=0.2):
            self._stop()
        released = threading.Event()

        def release() -> None:
            if not released.is_set():
                released.set()
                self._free.release()

        with self._lock:
            last = self._ends.pop(0) if self._ends else None
        try:
            yield Slot(self, release, last)
        finally:
            release()

    def ended(self, at: float) -> None:
        """A training stage has ended at `at`."""
        with self._lock:
            self._ends.append(at)


class Turn:
    """One measurement's turn to train: waited for as late as can be, and kept until the measurement ends."""

    def __init__(self, slots: Slots | None, held: ExitStack) -> None:
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
def turn(slots: Slots | None) -> Iterator[Turn]:
    """A turn that is given back at the end."""
    with ExitStack() as held:
        yield Turn(slots, held)
