"""The loop itself: workers that propose and play rounds in the order of proposal, and the one place where it stops.

There are as many workers as measurements at a time, and one more for each proposal that is made ahead: while the others
train, it waits with its proposal made, gated and frozen. A proposal is planned on the champion of its own turn.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from arsandbox.sandbox import confirmation, experiment, recovery, state, steps
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import ConflictError, Interrupted, UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.loop.bounds import Bounds, gpu_seconds, stop_file
from arsandbox.sandbox.loop.interruptible import Interruptible
from arsandbox.sandbox.loop.journal import Entry, Identity, Journal, last
from arsandbox.sandbox.loop.proposing import Desk
from arsandbox.sandbox.loop.rounds import Course, close_conflict, finals, play
from arsandbox.sandbox.loop.turns import RoundTurn, Turns
from arsandbox.sandbox.models import ImageRef
from arsandbox.sandbox.planning import Request, default_tag, plan
from arsandbox.sandbox.proposers.port import EditConflict
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.settings import Options
from arsandbox.sandbox.slots import NotBegun, Slots


@dataclass(frozen=True)
class Order:
    """What the user asked for. `propose` names the proposer; `parallel` is how many may train at a time.

    `ahead` is how many proposals are made before their turn; None for as many as suit the proposer.
    """

    path: Path
    propose: str
    options: Options
    bounds: Bounds
    parallel: int = 1
    resume: bool = False
    trusted: bool = False
    credentials: tuple[str, ...] = ()
    propose_limit_s: float | None = None
    ahead: int | None = None


def base_of(order: Order) -> str:
    """The commit whose config the loop follows: HEAD's, or for a resumed one where it began. Raises UsageError."""
    repository = Repository.open(order.path)
    return last(repository.state, order.options.tag)[1].base if order.resume else repository.head()


def loop(order: Order, engine: Engine, find_image: Callable[[str], ImageRef], listener: Listener) -> Iterator[Record]:
    """Run the loop, yielding the record that ended each round.

    The first Ctrl-C lets the rounds under way end; the second ends them, and Interrupted is raised. Raises
    ArsandboxError for failures of ours after the other rounds under way have ended.
    """
    start = base_of(order)
    base = plan(Request(order.path, order.options, base=start, commit=start), find_image=find_image)
    repository_state = base.repository.state
    if order.resume:
        journal = Journal.resume(repository_state, order.options.tag)
    else:
        tag = order.options.tag or default_tag()
        identity = Identity(id=state.new_experiment_id(), base=base.base, tag=tag, propose=order.propose)
        journal = Journal.begin(repository_state, identity)
    try:
        for line in recovery.recover(repository_state, engine):
            listener.note(f"cleaned up after a dead controller: {line}")
        with _signals(listener) as ending:
            interruptible = Interruptible(listener, lambda: ending.now)
            yield from _Loop(order, journal, engine, find_image, interruptible, ending).run()
    finally:
        journal.close()


@dataclass
class _Ending:
    """`soon`: begin no further round; `now`: end those under way. No events: a signal handler sets them."""

    soon: bool = False
    now: bool = False


class _Loop:
    def __init__(
        self,
        order: Order,
        journal: Journal,
        engine: Engine,
        find_image: Callable[[str], ImageRef],
        listener: Interruptible,
        ending: _Ending,
    ) -> None:
        self._order, self._journal, self._engine, self._listener = order, journal, engine, listener
        self._ending, self._find_image = ending, find_image
        identity = journal.identity
        options = replace(order.options, tag=identity.tag)
        start = Request(order.path, options, base=identity.base, commit=identity.base)
        self._start = plan(start, find_image=find_image)
        busy = (order.parallel + 1) * self._start.settings.policy.limits.cpus
        # With GPUs for the evaluation too, the next training would take the device before it.
        overlap = (os.cpu_count() or 1) >= busy and not self._start.settings.evaluation_gpus.number
        self._slots = Slots(order.parallel, overlap=overlap, stop=listener.stop)
        # Where training and evaluation overlap, one more round is under way than may train.
        self._turns = Turns(order.parallel + overlap, stop=listener.stop)
        self._course = Course(order.path, options, identity, engine, find_image)
        self._done: queue.Queue[Record | BaseException | None] = queue.Queue()
        self._proposing = threading.Lock()
        self._queues = threading.Lock()
        self._left_over: deque[Entry] = deque()
        self._resumed: set[int] = set()
        self._back: deque[Entry] = deque()
        self._closed = False  # nothing more is proposed
        self._over = False  # no further round begins
        self._began = time.monotonic()

    def run(self) -> Iterator[Record]:
        """The rounds left over first, then new ones."""
        entries = self._journal.entries()
        ended = finals(self._past(), {entry.number: entry.abandoned for entry in entries})
        self._left_over.extend(entry for entry in entries if entry.number not in ended)
        self._resumed.update(entry.number for entry in self._left_over)
        try:
            # What names no proposer is refused before anything is measured.
            desk = self._desk()
            if desk.queued:  # what went back waits for the end of the queue again
                self._back.extend(entry for entry in self._left_over if entry.conflict is not None)
                self._left_over = deque(entry for entry in self._left_over if entry.conflict is None)
            self._know_the_champion()
        except KeyboardInterrupt as error:
            raise Interrupted("the loop was interrupted; arsandbox loop --resume goes on") from error
        ahead = desk.ahead if self._order.ahead is None else self._order.ahead
        workers = [threading.Thread(target=self._work, args=(desk,)) for _ in range(self._order.parallel + ahead)]
        for worker in workers:
            worker.start()
        failure: BaseException | None = None
        alive = len(workers)
        try:
            while alive:
                try:
                    found = self._done.get(timeout=0.2)
                except queue.Empty:
                    continue
                if found is None:
                    alive -= 1
                elif isinstance(found, BaseException):
                    failure = failure or found
                    self._ending.soon = True
                else:
                    yield found
        finally:
            if alive:  # whoever reads the records stopped doing so
                self._ending.soon = self._ending.now = True
            for worker in workers:
                worker.join()
        if isinstance(failure, KeyboardInterrupt | Interrupted):
            raise Interrupted("the loop was interrupted; arsandbox loop --resume goes on") from failure
        if failure is not None:
            raise failure

    def _desk(self) -> Desk:
        order = self._order

        def waiting() -> list[str]:
            return [entry.description for entry in self._left_over]

        return Desk(order.propose, order, self._start, self._engine, self._listener, self._past, waiting)

    def _know_the_champion(self) -> None:
        """Measure the champion, and its noise where the rule needs it, before anything is compared with it."""
        champion = self._start.champion.commit
        request = Request(self._order.path, self._course.options, base=champion, commit=champion)
        what = replace(plan(request, find_image=self._find_image), slots=self._slots)
        if self._order.bounds.gpu_seconds is not None and not what.settings.needed_gpus.number:
            raise UsageError(
                "--gpu-time: no GPU is asked for, so this bound would never be reached",
                hint="bound the loop by --for or -n, or ask for GPUs: --gpus 1",
            )
        with Ledger.open(what.repository.state) as ledger:
            if what.settings.rule.design is not None:
                confirmation.calibrate(what, self._engine, self._listener, ledger)
            else:
                experiment.baseline_of(what, champion, self._engine, self._listener, ledger)

    def _past(self) -> list[Record]:
        with Ledger.open(self._start.repository.state) as ledger:
            return ledger.of_loop(self._journal.identity.id)

    def _work(self, desk: Desk) -> None:
        try:
            while (entry := self._next(desk)) is not None:
                self._round(desk, entry)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the thread that reads the records raises it
            self._ending.soon = True
            self._done.put(error)
        finally:
            self._done.put(None)

    def _next(self, desk: Desk) -> Entry | None:
        """The next round, in its place behind those before it: one that is left over, a new one, one that went back.

        A new proposal is kept before anything is done with it. None when the loop ends.
        """
        with self._proposing:
            if self._ending.soon or self._over:
                return None
            if self._left_over:
                return self._joined(self._left_over.popleft())
            if not self._closed:
                entry = self._proposed(desk)
                if entry is not None:
                    return self._joined(entry)
                self._closed = True
            with self._queues:
                return self._joined(self._back.popleft()) if self._back and not self._over else None

    def _joined(self, entry: Entry) -> Entry:
        self._turns.join(entry.number)
        return entry

    def _proposed(self, desk: Desk) -> Entry | None:
        entries = self._journal.entries()
        begun = entries[-1].number if entries else 0
        if self._is_over():
            return None
        if self._order.bounds.all_begun(begun):
            self._listener.note(f"the loop ends: {begun} rounds, as asked")
            return None
        entry = desk.propose(begun + 1, self._start.champion_now().commit)
        if entry is None:
            self._listener.note("the loop ends: nothing more is proposed")
            return None
        steps.reached("proposed")
        self._journal.save(entry)
        steps.reached("noted")
        return entry

    def _round(self, desk: Desk, entry: Entry) -> None:
        """Play the round of `entry`, and hand its record on before the next one's turn comes.

        There is none if the entry goes back to the end of its queue, or never began.
        """
        turn = RoundTurn(self._turns, self._slots, entry.number, may_begin=lambda: self._may_begin(entry))
        try:
            self._turns.wait_to_prepare(entry.number)  # only the next one's sandbox is made ahead of its turn
            record = self._played(desk, entry, turn)
            if record is not None:
                steps.reached("played")
                self._done.put(record)
        except NotBegun:
            pass  # it stays in the journal, for --resume
        finally:
            self._turns.leave(entry.number)

    def _played(self, desk: Desk, entry: Entry, turn: RoundTurn) -> Record | None:
        """The record that ends the round of `entry`, or None if it goes back to the end of its queue."""
        while True:
            ended = self._turns.ended
            try:
                return play(self._course, entry, turn, self._listener)
            except ConflictError as conflict:
                again = self._after_conflict(desk, entry, conflict, ended)
                if again is None:
                    self._may_begin(entry)
                    return close_conflict(self._course, entry, conflict, self._listener)
                if again.conflict is not None and entry.conflict is None and desk.queued:
                    return None
                entry = again

    def _after_conflict(self, desk: Desk, entry: Entry, conflict: ConflictError, ended: int) -> Entry | None:
        """What becomes of a proposal that does not fit the champion: tried again, proposed anew, or (None) given up.

        `ended` is how many rounds had ended before the champion was looked at.
        """
        if entry.conflict is not None:
            return entry if self._turns.wait_for_another(entry.number, since=ended) else None
        diff = entry.patch.decode("utf-8", "replace")
        told = EditConflict(description=entry.description, paths=conflict.paths, problem=conflict.message, diff=diff)
        self._listener.note(f"round {entry.number}: {entry.description} does not fit: {conflict.message}")
        if desk.queued:
            again = entry.went_back(told)
            self._journal.save(again)
            with self._queues:
                self._back.append(again)
            return again
        with self._proposing:
            proposed = desk.propose(entry.number, self._start.champion_now().commit, told)
        if proposed is None:
            return None
        mine = (record for record in self._past() if record.round and record.round.number == entry.number)
        proposed = proposed.instead_of(max((record.id for record in mine), default=""))
        self._journal.save(proposed)
        return proposed

    def _may_begin(self, entry: Entry) -> None:
        """Raise NotBegun if no further round begins: what was proposed stays for --resume.

        Bounds do not keep a resumed loop from ending the rounds that were left over.
        """
        if self._ending.soon or (entry.number not in self._resumed and self._is_over()):
            raise NotBegun

    def _is_over(self) -> bool:
        """Whether a bound other than the number of rounds is reached; said once."""
        stop = stop_file(self._start.repository.worktree)
        records = self._past()
        ended = finals(records)
        why = f"{stop} exists" if stop.exists() else self._order.bounds.reached(
            [ended[number] for number in sorted(ended)],
            elapsed_s=time.monotonic() - self._began,
            gpu_s=gpu_seconds(records),
        )  # fmt: skip
        with self._queues:
            if why is not None and not self._over:
                self._over = True
                self._listener.note(f"the loop ends: {why}")
        return why is not None


@contextmanager
def _signals(listener: Listener) -> Iterator[_Ending]:
    """The first Ctrl-C (or SIGTERM) sets `soon`, the next one `now`; what is ignored stays ignored."""
    ending = _Ending()

    def asked(number: int, frame: FrameType | None) -> None:
        ending.soon, ending.now = True, ending.soon

    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, asked)
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
