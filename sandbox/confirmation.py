"""Confirm a promising result: calibrate the noise, then pairs of fresh-seed runs until the test decides.

Each run is a record of its own before the next one starts, so that a controller that dies is continued
by whoever calls `confirm` again, without a run counted twice or a draw repeated.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox import decision, experiment, host, noise, promoting, recovery, sealed, state, steps
from arsandbox.sandbox.decision import Judgement, Noise
from arsandbox.sandbox.decision.noise import CALIBRATION_RUNS, mean
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import ConflictError, Interrupted, UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Finding, Trust, Verdict, utc_now
from arsandbox.sandbox.planning import Champion, Plan, plan_of
from arsandbox.sandbox.reapply import reapply
from arsandbox.sandbox.record import Baseline, Decision, Part, Record, Timing
from arsandbox.sandbox.run_directory import run_directory

# Attempts at one confirming run of the champion, which is known to work.
_CHAMPION_ATTEMPTS = 3
# Findings about where an edit came from, which stay true on another champion; all others are of one measurement.
_OF_THE_PROPOSAL = {"outside_editable", "edit_conflict"}


def confirm(what: Plan, pending: Record, engine: Engine, listener: Listener, *, recovering: bool = True) -> Record:
    """Complete the `pending` experiment and return the new record that says what it came to. Idempotent.

    `what` is its plan (planning.plan_of). If the champion has moved since `pending` was judged, the edit is put onto
    the new one and measured and confirmed there. Raises UsageError for a record that is not pending or that another
    process confirms, ConflictError if the edit does not fit the new champion, ArsandboxError for failures of ours; what
    was measured until then stays and is used again.
    """
    if pending.verdict is not Verdict.PENDING:
        raise UsageError(f"experiment {pending.id} is not pending ({pending.verdict.value})", hint="arsandbox history")
    if recovering:
        for line in recovery.recover(what.repository.state, engine):
            listener.note(f"cleaned up after a dead controller: {line}")
    with _alone(what, pending), Ledger.open(what.repository.state) as ledger:
        try:
            return _completed(what, pending, engine, listener, ledger)
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted; continue with: arsandbox confirm {pending.id}") from error


def confirmed_or_conflicting(what: Plan, pending: Record, engine: Engine, listener: Listener) -> Record:
    """As `confirm`; if the edit conflicts with what was promoted meanwhile, that is said and it stays pending."""
    try:
        return confirm(what, pending, engine, listener)
    except ConflictError as conflict:
        listener.note(f"{pending.id} stays pending: {conflict.message}; {conflict.hint}")
        return pending


def was_overtaken(record: Record) -> bool:
    """Whether `record` won, and is pending only since another candidate was promoted meanwhile."""
    return record.verdict is Verdict.PENDING and any(f.code == "champion_moved" for f in record.findings)


def _completed(what: Plan, pending: Record, engine: Engine, listener: Listener, ledger: Ledger) -> Record:
    won = pending.reason
    while True:
        done = ledger.confirmation(pending.id) or ledger.moved_on(pending.id)
        if done is not None and done.confirms is not None:
            return done
        if done is not None:
            moved, record = _with_round(plan_of(what.repository, done, what.options), what, done), done
            break
        champion = what.champion_now()
        if not _has_moved(what, pending, champion, ledger):
            record = _Confirmation(what, pending, engine, listener, ledger).run(champion)
            if record.verdict is not Verdict.INTERRUPTED:
                return record
            won = record.reason
            continue
        listener.note(f"another candidate was promoted meanwhile: {pending.id} is put onto {champion.commit[:12]}")
        moved = _moved(what, pending, champion, won)
        record = _measured_there(moved, engine, listener)
        break
    return confirm(moved, record, engine, listener, recovering=False) if record.verdict is Verdict.PENDING else record


def _has_moved(what: Plan, pending: Record, champion: Champion, ledger: Ledger) -> bool:
    """Whether the champion's code is another one than `pending` was judged against."""
    assert pending.baseline is not None  # noqa: S101 - pending means judged
    return ledger.get(pending.baseline.experiment).candidate_tree != what.repository.objects.tree_of(champion.commit)


def _moved(what: Plan, pending: Record, champion: Champion, won: str) -> Plan:
    """The plan of the same edit on the new champion. Raises ConflictError."""
    found = reapply(what.repository.objects, what.candidate, champion.commit)
    told = f"on the champion before: {won} (experiment {pending.id})"
    findings = [finding for finding in pending.findings if finding.code in _OF_THE_PROPOSAL]
    audit = what.options.audit or pending.trust == "L4"
    plan = replace(
        what,
        base=champion.commit,
        champion=champion,
        moved_from=pending.id,
        options=replace(what.options, description=pending.description, seed=None, audit=audit),
    ).with_edit(found, [*findings, Finding(code="champion_moved", detail=told)])
    return _with_round(plan, what, pending)


def _with_round(plan: Plan, what: Plan, record: Record) -> Plan:
    return replace(plan, round=what.round or record.round, slots=what.slots)


def _measured_there(moved: Plan, engine: Engine, listener: Listener) -> Record:
    """The first measurement of the edit on the new champion; none if that holds the edit already."""
    if not moved.candidate.is_base:
        return experiment.run(moved, engine, listener, recovering=False)
    reason = f"the champion {moved.champion.commit[:12]} holds this change already"
    finding = Finding(code="resubmitted", detail=reason)
    return experiment.without_run(moved, Verdict.DISCARD, reason, (finding,), engine, listener)


@contextmanager
def _alone(what: Plan, pending: Record) -> Iterator[None]:
    """One process confirms an experiment, or there would be two ends of it. Its death gives the lock back."""
    place = state.make_private(what.repository.state / "confirming")
    lock = state.Lock.try_take(place / f"{pending.id}.lock")
    if lock is None:
        raise UsageError(
            f"experiment {pending.id} is being confirmed by another process", hint="wait for it: arsandbox history"
        )
    try:
        yield
    finally:
        lock.remove()


def calibrate(what: Plan, engine: Engine, listener: Listener, ledger: Ledger) -> tuple[Noise, Record]:
    """(the noise of the plan's set-up, the baseline that was calibrated): measured as far as it is not known yet."""
    baseline = experiment.baseline_of(what, what.champion.commit, engine, listener, ledger)
    setup = baseline.setup_sha256
    unchanged = candidates.from_commit(what.repository.objects, what.champion.commit, what.champion.commit)
    failures = 0
    while (found := noise.noise_of(ledger, setup)) is None:
        number = len(noise.calibration_values(ledger, setup, champion=baseline.candidate_tree)) + 1
        listener.note(f"calibrating the noise: run {number} of up to {CALIBRATION_RUNS}")
        part = Part(of=baseline.id, role="calibration", side="champion", pair=number)
        run = experiment.measure_part(what, unchanged, part, engine, listener, ledger)
        failures += run.verdict is not Verdict.MEASURED
        if failures >= _CHAMPION_ATTEMPTS:
            raise UsageError(
                f"the champion failed {failures} times while its noise was calibrated: {run.reason}",
                hint=f"arsandbox logs {run.id}",
            )
    return found, baseline


@dataclass(frozen=True)
class _Pairs:
    """The confirming runs so far: values by pair, the records that hold them, and why a side gave none."""

    champion: tuple[float, ...]
    candidate: tuple[float, ...]
    experiments: tuple[str, ...]
    half: str | None
    failed: Record | None
    champion_failures: int


class _Confirmation:
    def __init__(self, what: Plan, pending: Record, engine: Engine, listener: Listener, ledger: Ledger) -> None:
        # What won at L4 is confirmed at L4, whoever continues it.
        audit = what.options.audit or pending.trust == "L4"
        self._plan, self._pending = replace(what, options=replace(what.options, audit=audit)), pending
        self._engine, self._listener, self._ledger = engine, listener, ledger
        self._simpler = pending.patch.deletions > pending.patch.insertions

    def run(self, champion: Champion) -> Record:
        """The final record against `champion`; an interrupted one if the branch was moved from it meanwhile."""
        spread = None
        if self._plan.settings.rule.design is not None:
            spread, _ = calibrate(self._plan, self._engine, self._listener, self._ledger)
        against = experiment.baseline_of(self._plan, champion.commit, self._engine, self._listener, self._ledger)
        judged, baseline, value = self._judged(champion, against, spread)
        steps.reached("confirmed")
        record = self._written(judged, champion, baseline, value)
        if record.verdict is not Verdict.INTERRUPTED:
            self._listener.finished(record)
        return record

    def _judged(self, champion: Champion, against: Record, spread: Noise | None) -> tuple[Judgement, Baseline, float]:
        """The judgement, what it compares with, and the candidate's value: confirming means where there are some."""
        rule, value = self._plan.settings.rule, self._pending.metric.value
        assert value is not None  # noqa: S101 - pending means measured
        reference = noise.champion_mean(self._ledger, against)
        screened = decision.screen(value, reference, spread, rule, simpler=self._simpler)
        statistical = spread is not None and not spread.deterministic
        screens = not statistical or self._pending.moved_from is None  # else only confirming runs may drop it
        if screens and screened.verdict is not Verdict.PENDING:
            return screened, Baseline(experiment=against.id, value=reference), value
        assert spread is not None  # noqa: S101 - a rule that asks for confirmation is calibrated
        while True:
            pairs = self._pairs(against)
            judged: Judgement | None
            if pairs.failed is not None:
                judged = self._given_up(pairs.failed)
            else:
                judged = decision.confirm(pairs.champion, pairs.candidate, spread, rule, simpler=self._simpler)
            if judged is not None:
                found = self._counted(judged, pairs)
                seen = found.decision.runs and found.decision.champion_runs
                baseline = Baseline(
                    experiment=against.id, value=mean(found.decision.champion_runs) if seen else reference
                )
                return found, baseline, mean(found.decision.runs) if seen else value
            if pairs.champion_failures >= _CHAMPION_ATTEMPTS:
                raise UsageError(f"the champion failed {pairs.champion_failures} times while it confirmed a candidate")
            self._measure_pair(champion, against, pairs)
            steps.reached("paired")

    def _measure_pair(self, champion: Champion, against: Record, pairs: _Pairs) -> None:
        """The next pair, in random order; of a pair that was begun only what is missing."""
        number = len(pairs.candidate) + 1
        unchanged = candidates.from_commit(self._plan.repository.objects, champion.commit, champion.commit)
        sides = [("champion", unchanged), ("candidate", self._plan.candidate)]
        if secrets.randbits(1):
            sides.reverse()
        for side, frozen in sides:
            if pairs.half == side:
                continue
            self._listener.note(f"confirming {self._pending.id}: pair {number}, the {side}")
            part = Part(
                of=self._pending.id,
                role="confirmation",
                side="champion" if side == "champion" else "candidate",
                pair=number,
                against=against.candidate_tree,
            )
            run = experiment.measure_part(self._plan, frozen, part, self._engine, self._listener, self._ledger)
            if run.verdict is not Verdict.MEASURED:
                return

    def _pairs(self, against: Record) -> _Pairs:
        """What the ledger holds of this confirmation against the champion's tree."""
        sides: dict[str, dict[int, Record]] = defaultdict(dict)
        failed, failures = None, 0
        for record in self._ledger.parts(self._pending.id):
            part = record.part
            if part is None or part.role != "confirmation" or part.against != against.candidate_tree:
                continue
            if record.verdict is Verdict.MEASURED:
                sides[part.side].setdefault(part.pair, record)
            elif record.verdict is not Verdict.INTERRUPTED and part.side == "candidate":
                failed = failed or record
            elif record.verdict is not Verdict.INTERRUPTED:
                failures += 1
        complete = sorted(sides["champion"].keys() & sides["candidate"].keys())
        rows = [(sides["champion"][n], sides["candidate"][n]) for n in complete]
        begun = [side for side in sides if sides[side].keys() - set(complete)]
        return _Pairs(
            champion=tuple(c.metric.value for c, _ in rows if c.metric.value is not None),
            candidate=tuple(c.metric.value for _, c in rows if c.metric.value is not None),
            experiments=tuple(record.id for row in rows for record in row),
            half=begun[0] if begun else None,
            failed=failed,
            champion_failures=failures,
        )

    def _trust(self) -> Trust | None:
        """The lowest level of the candidate's runs: the value is no better than its worst part."""
        runs = [
            record.trust
            for record in self._ledger.parts(self._pending.id)
            if record.verdict is Verdict.MEASURED and record.part is not None and record.part.side == "candidate"
        ]
        return min((trust for trust in (self._pending.trust, *runs) if trust is not None), default=None)

    def _refuted(self) -> str | None:
        """What an audit of this code found against it, which no confirmation outweighs."""
        audit = sealed.refuted(self._ledger, self._pending)
        return f"the audit {audit.id} ended as {audit.verdict.value}: {audit.reason}" if audit is not None else None

    def _given_up(self, failed: Record) -> Judgement:
        verdict = Verdict.QUARANTINE if failed.verdict is Verdict.QUARANTINE else Verdict.DISCARD
        reason = f"a confirming run ended with {failed.verdict.value}: {failed.reason}"
        return Judgement(verdict, reason, Decision(rule=self._plan.settings.rule.name, experiments=(failed.id,)))

    def _counted(self, judged: Judgement, pairs: _Pairs) -> Judgement:
        design = self._plan.settings.rule.design
        before = dict(self._ledger.tested(self._pending.branch))
        before.pop(self._pending.id, None)
        alpha = design.alpha if design else 0.0
        counted = judged.decision.model_copy(
            update={
                "experiments": pairs.experiments or judged.decision.experiments,
                "alpha": alpha,
                "tests": len(before) + 1,
                "alpha_spent": round(sum(before.values()) + alpha, 12),
            }
        )
        return Judgement(judged.verdict, judged.reason, counted)

    def _written(self, judged: Judgement, champion: Champion, baseline: Baseline, value: float) -> Record:
        """The final record, promoted where it won; an interrupted one when the branch has moved meanwhile."""
        trust = self._trust()
        blocked = experiment.unpromoted(self._plan, trust) or self._refuted()
        with run_directory(self._plan.repository.state) as place:
            (place.keep / "patch.diff").write_bytes(self._plan.candidate.diff)
            draft = self._draft(place.id)
            self._ledger.begin(draft)
            reason = judged.reason
            promotes = judged.verdict is Verdict.KEEP and blocked is None
            if judged.verdict is Verdict.KEEP and blocked:
                reason = f"{reason}; not promoted: {blocked}"
            metric = self._pending.metric.model_copy(update={"value": value})
            record = draft.model_copy(
                update={
                    "verdict": judged.verdict,
                    "reason": state.printable(reason),
                    "trust": trust,
                    "metric": metric,
                    "metrics": {**self._pending.metrics, metric.name: value},
                    "decision": judged.decision,
                    "baseline": baseline,
                    "finished_at": utc_now(),
                }
            )
            if not promotes:
                return self._ledger.append(record)
            promoted = promoting.promote(
                self._plan.repository,
                self._ledger,
                record,
                candidate=self._plan.candidate.commit,
                branch=self._plan.branch,
                champion=champion,
            )
            if promoted is not None:
                return promoted
            moved = self._plan.champion_now() != champion
            why = "the branch has moved meanwhile" if moved else f"{self._plan.branch} is checked out"
            again = Verdict.INTERRUPTED if moved else Verdict.KEEP
            return self._ledger.append(
                record.model_copy(update={"verdict": again, "reason": f"{record.reason}; not promoted: {why}"})
            )

    def _draft(self, identity: str) -> Record:
        """The final record as it stands if this controller dies: interrupted, and to be confirmed again."""
        now = utc_now()
        return self._pending.model_copy(
            update={
                "id": identity,
                "confirms": self._pending.id,
                "verdict": Verdict.INTERRUPTED,
                "reason": "the controller ended before the confirmation did",
                "metric": self._pending.metric.model_copy(update={"value": None}),
                "decision": None,
                "stages": (),
                "timing": Timing(),
                "environment": host.environment(),
                "started_at": now,
                "finished_at": now,
                "previous_hash": "",
                "ledger_hash": "",
            }
        )
