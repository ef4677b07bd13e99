"""The loop itself: workers that propose and play rounds, and the one place where it stops.

One more worker than measurements at a time: while the others train, it waits with the next proposal
made, gated and frozen.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from arsandbox.sandbox import confirmation, experiment, recovery, state, steps
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import Interrupted, UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.loop.bounds import Bounds, gpu_seconds, stop_file
from arsandbox.sandbox.loop.interruptible import Interruptible
from arsandbox.sandbox.loop.journal import Entry, Identity, Journal, last
from arsandbox.sandbox.loop.proposing import Desk
from arsandbox.sandbox.loop.rounds import Course, finals, play
from arsandbox.sandbox.models import ImageRef
from arsandbox.sandbox.planning import Request, default_tag, plan
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.settings import Options
from arsandbox.sandbox.slots import Slots


@dataclass(frozen=True)
class Order:
    """What the user asked for. `propose` names the proposer; `parallel` is how many may train at a time."""

    path: Path
    propose: str
    options: Options
    bounds: Bounds
    parallel: int = 1
    resume: bool = False
    trusted: bool = False
    credentials: tuple[str, ...] = ()
    propose_limit_s: float | None = None


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
        slots = Slots(order.parallel, overlap=overlap, stop=listener.stop)
        self._course = Course(order.path, options, identity, engine, find_image, slots)
        self._done: queue.Queue[Record | BaseException | None] = queue.Queue()
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def run(self) -> Iterator[Record]:
        """The rounds left over first, then new ones."""
        try:
            left_over = self._left_over()
            # What names no proposer is refused before anything is measured; rounds left over come before its past.
            desk = None if left_over else self._desk()
            self._know_the_champion()
            for entry in left_over:
                if not self._ending.soon:
                    yield play(self._course, entry, self._listener)
            desk = desk or self._desk()
        except KeyboardInterrupt as error:
            raise Interrupted("the loop was interrupted; arsandbox loop --resume goes on") from error
        workers = [threading.Thread(target=self._work, args=(desk,)) for _ in range(self._order.parallel + 1)]
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
        return Desk(order.propose, order, self._start, self._engine, self._listener, self._past)

    def _know_the_champion(self) -> None:
        """Measure the champion, and its noise where the rule needs it, before anything is compared with it."""
        champion = self._start.champion.commit
        request = Request(self._order.path, self._course.options, base=champion, commit=champion)
        what = replace(plan(request, find_image=self._find_image), slots=self._course.slots)
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

    def _left_over(self) -> list[Entry]:
        ended = finals(self._past())
        return [entry for entry in self._journal.entries() if entry.number not in ended]

    def _work(self, desk: Desk) -> None:
        try:
            while (entry := self._next(desk)) is not None:
                record = play(self._course, entry, self._listener)
                steps.reached("played")
                self._done.put(record)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the thread that reads the records raises it
            self._ending.soon = True
            self._done.put(error)
        finally:
            self._done.put(None)

    def _next(self, desk: Desk) -> Entry | None:
        """The next round's proposal, kept before anything is done with it; None when the loop ends."""
        with self._lock:
            records = self._past()
            entries = self._journal.entries()
            begun = entries[-1].number if entries else 0
            why = self._why_stop(records, begun)
            if why is not None:
                if not self._ending.soon:
                    self._listener.note(f"the loop ends: {why}")
                self._ending.soon = True
                return None
            entry = desk.propose(begun + 1, self._start.champion_now().commit)
            if entry is None:
                self._listener.note("the loop ends: nothing more is proposed")
                self._ending.soon = True
                return None
            steps.reached("proposed")
            self._journal.save(entry)
            steps.reached("noted")
            return entry

    def _why_stop(self, records: list[Record], begun: int) -> str | None:
        if self._ending.soon:
            return "it was asked to"
        if stop_file(self._start.repository.worktree).exists():
            return f"{stop_file(self._start.repository.worktree)} exists"
        ended = finals(records)
        return self._order.bounds.reached(
            [ended[number] for number in sorted(ended)],
            begun=begun,
            elapsed_s=time.monotonic() - self._began,
            gpu_s=gpu_seconds(records),
        )


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
