"""One proposal, run once: `arsandbox run --propose`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from arsandbox.sandbox import experiment, recovery, state
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import ConflictError, Interrupted, UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.loop.journal import Identity
from arsandbox.sandbox.loop.proposing import Desk
from arsandbox.sandbox.loop.rounds import Course, close_conflict, run_proposal
from arsandbox.sandbox.loop.turns import RoundTurn, Turns
from arsandbox.sandbox.models import ImageRef
from arsandbox.sandbox.planning import Plan, Request, default_tag, plan
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.slots import Slots


@dataclass(frozen=True)
class Errand:
    """What the user asked for: `request` names base and options, and no candidate; `propose` names the proposer.

    `trusted`, `credentials` and `propose_limit_s` (seconds) are as for a loop.
    """

    request: Request
    propose: str
    trusted: bool = False
    credentials: tuple[str, ...] = ()
    propose_limit_s: float | None = None


def propose_and_run(
    errand: Errand, engine: Engine, find_image: Callable[[str], ImageRef], listener: Listener
) -> tuple[Plan, Record]:
    """Have one edit of the champion proposed, and run and judge it once. The plan is what confirms a pending record.

    Nothing is kept for a resume: a controller that dies while the edit is proposed leaves nothing to go on with. Raises
    UsageError where nothing is proposed, Interrupted on Ctrl-C, and what planning and running raise.
    """
    request = errand.request
    # The tag of now: a proposal may take longer than the day lasts.
    options = replace(request.options, tag=request.options.tag or default_tag())
    start = plan(replace(unchanged(request), options=options), find_image=find_image)
    for line in recovery.recover(start.repository.state, engine):
        listener.note(f"cleaned up after a dead controller: {line}")
    experiment.require_able(start, engine)  # before an agent has worked for nothing

    def past() -> list[Record]:
        with Ledger.open(start.repository.state) as ledger:
            return ledger.proposed(start.branch)

    try:
        entry = Desk(errand.propose, errand, start, engine, listener, past).propose(1, start.champion.commit)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted while an edit was proposed; its sandbox is gone, nothing is recorded") from error
    if entry is None:
        raise UsageError(
            f"--propose {errand.propose}: nothing is proposed",
            hint="every patch of the queue was tried on this branch: add one, or use another --propose",
        )
    identity = Identity(
        id=state.new_experiment_id(), base=start.base, tag=str(options.tag), propose=errand.propose
    )  # fmt: skip
    course = Course(request.path, options, identity, engine, find_image)
    turns = Turns(1)
    turns.join(entry.number)
    turn = RoundTurn(turns, Slots(1, overlap=False), entry.number, may_begin=lambda: None)
    try:
        return run_proposal(course, entry, turn, listener)
    except ConflictError as conflict:  # another controller promoted while the edit was proposed
        return start, close_conflict(course, entry, conflict, listener)


def unchanged(request: Request) -> Request:
    """The request with its base as the candidate."""
    return Request(request.path, request.options, base=request.base, commit=request.base)
