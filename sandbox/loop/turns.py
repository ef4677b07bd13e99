"""Whose turn it is: rounds in the order of their proposals, each planned on the champion of its own turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from arsandbox.sandbox.slots import Slot, Slots, Superseded


class Turns:
    """Rounds in order; the first `most` of those that have not ended are under way, the others wait.

    Of those under way, one begins only after the ones before it have begun: whichever is ready first, none overtakes.
    `stop` is asked while waiting, and may raise.
    """

    def __init__(self, most: int, *, stop: Callable[[], None] = lambda: None) -> None:
        self._most, self._stop = most, stop
        self._rounds: list[int] = []
        self._begun: set[int] = set()
        self._blocked: set[int] = set()
        self._ended = 0
        self._changed = threading.Condition()

    def join(self, number: int) -> None:
        """Let round `number` stand at the end of those that wait."""
        with self._changed:
            self._rounds.append(number)

    def leave(self, number: int) -> None:
        """Round `number` has ended, or goes back to the end of its queue."""
        with self._changed:
            self._rounds.remove(number)
            self._begun.discard(number)
            self._ended += 1
            self._changed.notify_all()

    def come(self, number: int) -> bool:
        """Whether the turn of round `number` has come."""
        with self._changed:
            return self._has_come(number)

    def begin(self, number: int) -> None:
        """Round `number` has begun: the next one may, too, if it is under way."""
        with self._changed:
            self._begun.add(number)
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        """Return when the turn of round `number` has come."""
        with self._changed:
            while not self._has_come(number):
                self._changed.wait(0.2)
                self._stop()

    def wait_to_prepare(self, number: int) -> None:
        """Return when round `number` is under way or the next one: no others make their sandboxes ahead."""
        with self._changed:
            while self._rounds.index(number) > self._most:
                self._changed.wait(0.2)
                self._stop()

    def _has_come(self, number: int) -> bool:
        place = self._rounds.index(number)
        # One that waits for another's end holds nobody up: it may wait for this very one.
        return place < self._most and not set(self._rounds[:place]) - self._begun - self._blocked

    @property
    def ended(self) -> int:
        """How many rounds have ended or gone back."""
        with self._changed:
            return self._ended

    def wait_for_another(self, number: int, *, since: int) -> bool:
        """Return True when another round has ended; False at once if none is under way but those that wait here.

        `since` is what `ended` was before the champion was looked at: a round that ended after that counts.
        """
        with self._changed:
            self._blocked.add(number)
            self._changed.notify_all()
            try:
                while self._ended == since:
                    if not set(self._rounds[: self._most]) - self._blocked:
                        return False
                    self._changed.wait(0.2)
                    self._stop()
            finally:
                self._blocked.discard(number)
                self._changed.notify_all()
            return True


class RoundTurn:
    """The turn of one round, and the training slots that its measurements take."""

    def __init__(self, turns: Turns, slots: Slots, number: int, *, may_begin: Callable[[], None]) -> None:
        self._turns, self._slots, self.number, self._may_begin = turns, slots, number, may_begin

    @property
    def come(self) -> bool:
        """Whether it has come."""
        return self._turns.come(self.number)

    def wait(self) -> None:
        """Return when it has come. Raises what `may_begin` raises if the round shall not begin any more."""
        self._turns.wait(self.number)
        self._may_begin()

    def begin(self) -> None:
        """What it does takes its course from here on."""
        self._turns.begin(self.number)

    def slots(self, current: Callable[[], bool]) -> RoundSlots:
        """The slots for one plan of this round; `current` says whether it is still made on the champion."""
        return RoundSlots(self, self._slots, current)


class RoundSlots:
    """The training slots as one plan sees them: its round's turn first, and only while the plan is current."""

    def __init__(self, turn: RoundTurn, slots: Slots, current: Callable[[], bool]) -> None:
        self._turn, self._slots, self._current = turn, slots, current
        self._begun = False

    @property
    def ahead(self) -> bool:
        """Whether a sandbox may be made before its turn."""
        return self._slots.ahead

    def take(self) -> AbstractContextManager[Slot]:
        """Wait for the round's turn and a slot. Raises Superseded if the champion moved before anything ran."""
        return self._take()

    @contextmanager
    def _take(self) -> Iterator[Slot]:
        if not self._begun:
            self._turn.wait()
        with self._slots.take(self._turn.number) as slot:
            if not self._begun and not self._current():
                raise Superseded
            self._begun = True
            self._turn.begin()
            yield slot
