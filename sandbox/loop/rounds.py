"""One round of a loop: from a kept proposal to its record, also when a controller died in the middle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from arsandbox.sandbox import confirmation, experiment
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.loop.journal import Entry, Identity
from arsandbox.sandbox.models import ImageRef, Verdict
from arsandbox.sandbox.planning import Plan, Request, plan, plan_of
from arsandbox.sandbox.proposers.command import LOG_NAME
from arsandbox.sandbox.record import Record, Round
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.settings import Options
from arsandbox.sandbox.slots import Slots


@dataclass(frozen=True)
class Course:
    """What every round of a loop shares."""

    path: Path
    options: Options
    identity: Identity
    engine: Engine
    find_image: Callable[[str], ImageRef]
    slots: Slots


def finals(records: list[Record]) -> dict[int, Record]:
    """The record that ended each round, by its number. Interrupted and still pending ones end none."""
    found: dict[int, Record] = {}
    for record in records:
        open_ends = (Verdict.INTERRUPTED, Verdict.PENDING, Verdict.BASELINE)
        if record.round is not None and record.part is None and record.verdict not in open_ends:
            found[record.round.number] = record  # a disturbed run comes before the one that counts
    return found


def play(course: Course, entry: Entry, listener: Listener) -> Record:
    """Run, decide and promote the proposal of `entry`; what an earlier controller did of it is not done again."""
    repository = Repository.open(course.path)
    with Ledger.open(repository.state) as ledger:
        mine = [r for r in ledger.of_loop(course.identity.id) if r.round and r.round.number == entry.number]
    done = finals(mine).get(entry.number)
    if done is not None:
        return done
    pending = next((r for r in mine if r.verdict is Verdict.PENDING and r.confirms is None), None)
    if pending is None:
        what, record = run_proposal(course, entry, listener)
        if record.verdict is not Verdict.PENDING:
            return record
        pending = record
    else:
        what = replace(plan_of(repository, pending, course.options), round=_place(course, entry), slots=course.slots)
    return confirmation.confirm(what, pending, course.engine, listener, recovering=False)


def run_proposal(course: Course, entry: Entry, listener: Listener) -> tuple[Plan, Record]:
    """Run and judge the proposal of `entry` once; the plan is what a pending record is confirmed by."""
    what = _plan(course, entry)
    if entry.verdict is not None:
        record = experiment.without_run(what, entry.verdict, entry.reason, entry.findings, course.engine, listener)
    else:
        record = experiment.run(what, course.engine, listener, recovering=False)
    if entry.log and Path(entry.log).is_file():  # what the proposer said; `arsandbox logs --stage propose` shows it
        kept = what.repository.state / "experiments" / record.id / LOG_NAME
        shutil.copyfile(entry.log, kept)
    return what, record


def _place(course: Course, entry: Entry) -> Round:
    return Round(loop=course.identity.id, number=entry.number, proposer=entry.proposer, stage=entry.stage)


def _plan(course: Course, entry: Entry) -> Plan:
    """The plan on the champion of now; on that of the proposal where its diff applies there alone."""
    options = replace(course.options, description=entry.description)
    unchanged = plan(
        Request(course.path, options, base=course.identity.base, commit=course.identity.base),
        find_image=course.find_image,
    )
    champion = unchanged.champion.commit
    if entry.verdict is not None:
        request = Request(course.path, options, base=champion, commit=champion)
        found = plan(request, find_image=course.find_image)
    else:
        try:
            request = Request(course.path, options, base=champion, diff=entry.patch)
            found = plan(request, find_image=course.find_image)
        except UsageError:
            if champion == entry.champion:
                raise
            request = Request(course.path, options, base=entry.champion, diff=entry.patch)
            found = plan(request, find_image=course.find_image)
    return replace(found, round=_place(course, entry), slots=course.slots)
