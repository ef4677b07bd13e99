"""One round of a loop: from a kept proposal to its record, also when a controller died in the middle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from arsandbox.sandbox import confirmation, experiment
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import ConflictError, UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.loop.journal import Entry, Identity
from arsandbox.sandbox.loop.turns import RoundTurn
from arsandbox.sandbox.models import Finding, ImageRef, Verdict
from arsandbox.sandbox.planning import Plan, Request, plan, plan_of
from arsandbox.sandbox.proposers.command import LOG_NAME
from arsandbox.sandbox.reapply import fitted, lineage
from arsandbox.sandbox.record import Record, Round
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.settings import Options
from arsandbox.sandbox.slots import Superseded
from arsandbox.sandbox.state import printable

PROPOSED_NAME = "proposed.diff"


@dataclass(frozen=True)
class Course:
    """What every round of a loop shares."""

    path: Path
    options: Options
    identity: Identity
    engine: Engine
    find_image: Callable[[str], ImageRef]


def finals(records: list[Record], abandoned: Mapping[int, str] | None = None) -> dict[int, Record]:
    """The record that ended each round, by its number. Interrupted and still pending ones end none.

    A disturbed run ends its round only if it is the last one: another run comes after it. `abandoned` are the ids, by
    round, up to which records are of an edit in whose place another one was proposed.
    """
    found: dict[int, Record] = {}
    for record in records:
        if record.round is None or record.part is not None or record.verdict is Verdict.BASELINE:
            continue
        number = record.round.number
        if record.id <= (abandoned or {}).get(number, ""):
            continue
        if record.verdict not in (Verdict.INTERRUPTED, Verdict.PENDING):
            found[number] = record
        elif number in found and found[number].verdict is Verdict.INVALID:
            del found[number]
    return found


def play(course: Course, entry: Entry, turn: RoundTurn, listener: Listener) -> Record:
    """Run, decide and promote the proposal of `entry`; what an earlier controller did of it is not done again.

    Raises ConflictError if the turn has come and the proposal does not fit the champion.
    """
    repository = Repository.open(course.path)
    with Ledger.open(repository.state) as ledger:
        mine = [r for r in ledger.of_loop(course.identity.id) if r.round and r.round.number == entry.number]
    done = finals(mine, {entry.number: entry.abandoned}).get(entry.number)
    if done is not None:
        return done
    pending = next((r for r in reversed(mine) if _may_go_on(r, entry)), None)
    if pending is None:
        what, record = run_proposal(course, entry, turn, listener)
        if record.verdict is not Verdict.PENDING:
            return record
        pending = record
    else:
        turn.wait()
        turn.begin()
        what = plan_of(repository, pending, course.options)
        what = replace(what, round=_place(course, entry), slots=turn.slots(lambda: True))
    return confirmation.confirm(what, pending, course.engine, listener, recovering=False)


def _may_go_on(record: Record, entry: Entry) -> bool:
    """Whether `record` is a pending result of this very proposal, not of one that was proposed anew."""
    return record.verdict is Verdict.PENDING and record.confirms is None and record.id > entry.abandoned


def run_proposal(course: Course, entry: Entry, turn: RoundTurn, listener: Listener) -> tuple[Plan, Record]:
    """Run and judge the proposal of `entry` once; the plan is what a pending record is confirmed by.

    It is planned ahead of its turn, so that its sandbox is ready then, and planned again if the champion has moved by
    the time it comes. Raises ConflictError if it does not fit the champion of its turn.
    """
    while True:
        come = turn.come
        try:
            what, planned = _plan(course, entry)
            what = replace(what, slots=turn.slots(_is_current(what)))
            return what, _recorded(what, course, planned, turn, listener)
        except ConflictError:
            turn.wait()
            if come:
                raise
        except Superseded:
            listener.note(f"round {entry.number}: another edit was promoted before its turn; it is put onto that one")


def close_conflict(course: Course, entry: Entry, conflict: ConflictError, listener: Listener) -> Record:
    """Record that the proposal of `entry` does not fit and is given up."""
    what = _on_champion(course, entry)
    finding = Finding(code="edit_conflict", detail=conflict.message)
    words = f"it does not fit the champion {what.champion.commit[:12]}: {conflict.message}"
    return _without_run(what, course, entry, Verdict.REJECTED, printable(words), (finding,), listener)


def _recorded(what: Plan, course: Course, entry: Entry, turn: RoundTurn, listener: Listener) -> Record:
    if entry.verdict is not None:
        turn.wait()
        return _without_run(what, course, entry, entry.verdict, entry.reason, entry.findings, listener)
    if what.candidate.is_base:
        turn.wait()
        if not _is_current(what)():
            raise Superseded
        reason = f"the champion {what.champion.commit[:12]} holds this change already"
        finding = Finding(code="resubmitted", detail=reason)
        return _without_run(what, course, entry, Verdict.DISCARD, reason, (finding,), listener)
    record = experiment.run(what, course.engine, listener, recovering=False)
    _keep_log(what, record, entry)
    return record


def _without_run(
    what: Plan, course: Course, entry: Entry, verdict: Verdict, reason: str, findings: tuple[Finding, ...],
    listener: Listener,
) -> Record:  # fmt: skip
    record = experiment.without_run(what, verdict, reason, findings, course.engine, listener)
    _keep_log(what, record, entry)
    if entry.patch:
        (what.repository.state / "experiments" / record.id / PROPOSED_NAME).write_bytes(entry.patch)
    return record


def _keep_log(what: Plan, record: Record, entry: Entry) -> None:
    """Keep what the proposer said; `arsandbox logs --stage propose` shows it."""
    if entry.log and Path(entry.log).is_file():
        shutil.copyfile(entry.log, what.repository.state / "experiments" / record.id / LOG_NAME)


def _place(course: Course, entry: Entry) -> Round:
    return Round(loop=course.identity.id, number=entry.number, proposer=entry.proposer, stage=entry.stage)


def _is_current(what: Plan) -> Callable[[], bool]:
    """Whether a plan is still made on the champion."""
    return lambda: what.champion_now().commit == what.base


def _on_champion(course: Course, entry: Entry) -> Plan:
    """The plan that changes nothing of the champion of now."""
    options = replace(course.options, description=entry.description)
    base = course.identity.base
    while True:
        found = plan(Request(course.path, options, base=base, commit=base), find_image=course.find_image)
        if found.base == found.champion.commit:
            return replace(found, round=_place(course, entry))
        base = found.champion.commit


def _plan(course: Course, entry: Entry) -> tuple[Plan, Entry]:
    """The proposal of `entry` as a plan on the champion of now, and the entry: refused if it is no patch at all.

    Raises ConflictError if it does not fit that champion.
    """
    what = _on_champion(course, entry)
    if entry.verdict is not None:
        return what, entry
    objects, champion = what.repository.objects, what.champion.commit
    made_on = lineage(objects, course.identity.base, champion) if entry.floating else (entry.champion,)
    try:
        found = fitted(objects, entry.patch, champion, made_on, name=entry.description or "the proposal")
    except ConflictError:
        raise
    except UsageError as error:
        return what, entry.refused(printable(error.message))
    remarks = list(entry.findings)
    if entry.conflict is not None:
        remarks.append(Finding(code="edit_conflict", detail=entry.conflict.problem))
    return what.with_edit(found, remarks), entry
