"""One experiment from request to record: freeze, gate, prepare, measure, judge, promote, write down.

Every step may be the last one that this process lives: what exists is announced in the ledger or
labelled before it exists, and recovery.py finishes it at the next start.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace

from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox import decision, host, plausibility, prepared, promotion, recovery, reported, state
from arsandbox.sandbox.bench import declared_trust
from arsandbox.sandbox.candidate import Candidate
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import ArsandboxError, Interrupted, UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.measure import Bench, Measurement, determinism, measure
from arsandbox.sandbox.models import (
    Baseline,
    MetricInfo,
    PolicyInfo,
    Promotion,
    Record,
    Timing,
    Usage,
    Verdict,
    utc_now,
)
from arsandbox.sandbox.planning import Champion as Champion
from arsandbox.sandbox.planning import Plan as Plan
from arsandbox.sandbox.planning import Request as Request
from arsandbox.sandbox.planning import champion_of as champion_of
from arsandbox.sandbox.planning import plan as plan
from arsandbox.sandbox.planning import require_image as require_image
from arsandbox.sandbox.requirements import not_promotable, require_engine
from arsandbox.sandbox.run_directory import RunDirectory, run_directory
from arsandbox.sandbox.workspace.layers import LayerStore


def run(what: Plan, engine: Engine, listener: Listener) -> Record:
    """Run the experiment and return its ledger record. Raises ArsandboxError for our own failures.

    The baseline is measured first when none is recorded for this set-up; a disturbed measurement is
    kept as `invalid` and made again. On KeyboardInterrupt the sandbox is ended, the record says
    `interrupted`, and Interrupted is raised.
    """
    for line in recovery.recover(what.repository.state, engine):
        listener.note(f"cleaned up after a dead controller: {line}")
    for policy in what.settings.used_policies:
        require_engine(policy, engine.info())
    require_image(engine, what.image)
    if what.branch != what.preferred_branch:
        listener.note(f"{what.preferred_branch} is checked out and never moved: a winner goes to {what.branch}")
    for path in what.candidate.left_out[:5]:
        listener.note(f"not part of the candidate: {path} (untracked, not in `editable`)")
    with Ledger.open(what.repository.state) as ledger:
        return _measured(what, what.candidate, engine, listener, ledger)


def prepare(what: Plan, engine: Engine, listener: Listener) -> str | None:
    """Run the prepare stage if its outputs are not cached; returns their digest, None without a stage."""
    recovery.recover(what.repository.state, engine)
    for policy in what.settings.used_policies:
        require_engine(policy, engine.info())
    require_image(engine, what.image)
    try:
        with Ledger.open(what.repository.state) as ledger, run_directory(what.repository.state) as place:
            data = _Experiment(what, what.candidate, engine, listener, ledger, place).bench().data
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; the sandbox is gone") from error
    return data.sha256 if data else None


def _measured(what: Plan, candidate: Candidate, engine: Engine, listener: Listener, ledger: Ledger) -> Record:
    """The candidate's record; measured again, as often as the project says, while the machine was disturbed."""
    for left in range(what.settings.project.measurement.repeat, -1, -1):
        with run_directory(what.repository.state) as place:
            record = _Experiment(what, candidate, engine, listener, ledger, place).run()
        listener.finished(record)
        if record.verdict is not Verdict.INVALID or not left:
            break
        listener.note("the machine was disturbed: measuring again")
    return record


class _Experiment:
    """One candidate on its way to a record."""

    def __init__(
        self,
        what: Plan,
        candidate: Candidate,
        engine: Engine,
        listener: Listener,
        ledger: Ledger,
        place: RunDirectory,
    ) -> None:
        self._plan, self._candidate, self._engine = what, candidate, engine
        self._listener, self._ledger, self._place = listener, ledger, place
        self._queued = time.monotonic()
        # Fresh for every experiment, the baseline's too: a shared seed would promote a lucky one.
        self._seed = what.options.seed if what.options.seed is not None else secrets.randbits(31)
        self._setup = ""
        self._seen = Measurement()
        self._draft = self._first_draft()

    def run(self) -> Record:
        try:
            (self._place.keep / "patch.diff").write_bytes(self._candidate.diff)
            self._ledger.begin(self._draft)
            return self._run()
        except KeyboardInterrupt as error:
            if recovery.finish_promotion(self._ledger, self._place.id) is not None:
                raise Interrupted(f"interrupted while {self._place.id} was promoted; that was completed") from error
            self._close(Verdict.INTERRUPTED, "interrupted by the user")
            raise Interrupted(f"experiment {self._place.id} was interrupted; its sandbox is gone") from error
        except (ArsandboxError, OSError) as error:
            if self._ledger.intent(self._place.id) is None:
                self._close(Verdict.INTERRUPTED, f"not finished: {error}")
            raise

    def _run(self) -> Record:
        what = self._plan
        if what.refusals and not self._candidate.is_base:
            return self._close(Verdict.REJECTED, f"the patch is refused: {what.refusals[0]}")
        bench = self.bench()
        data = bench.data.sha256 if bench.data else None
        self._setup = what.settings.digest(image=what.image.digest, fixed_tree=what.fixed[0], data=data)
        self._draft = self._draft.model_copy(update={"setup_sha256": self._setup, "data_sha256": data})
        baseline = None if self._candidate.is_base else self._baseline(what.champion.commit)
        if baseline is not None:
            kept = what.repository.state / "experiments" / baseline.id
            bench = replace(bench, expected_tests=reported.expected_tests(baseline, kept))
        measure(bench, self._candidate, seed=self._seed, run=self._place, into=self._seen)
        return self._judge(baseline, what.champion)

    def bench(self) -> Bench:
        """Where the candidate is measured; runs the prepare stage when its outputs are not there yet."""
        what = self._plan
        layers = LayerStore(what.repository.state / "layers", what.repository.objects)
        data = prepared.ensure(
            self._engine,
            layers,
            what.settings,
            base=what.base,
            fixed=what.fixed,
            image=what.image,
            directory=what.repository.state / "data",
            run=self._place,
            listener=self._listener,
        )
        objects, settings, listener = what.repository.objects, what.settings, self._listener
        return Bench(self._engine, objects, layers, settings, what.image, data, listener, what.options.audit)

    def _baseline(self, champion: str) -> Record:
        """The champion's record under this set-up, measured now when there is none."""
        tree = self._plan.repository.objects.tree_of(champion)
        found = self._ledger.measured(tree, self._setup)
        if found is not None:
            return found
        self._listener.note(f"no baseline is recorded for {champion[:12]} under this set-up: measuring it first")
        unchanged = candidates.from_commit(self._plan.repository.objects, champion, champion)
        record = _measured(self._plan, unchanged, self._engine, self._listener, self._ledger)
        if record.metric.value is None or record.verdict is not Verdict.BASELINE:
            raise UsageError(
                f"the baseline itself failed ({record.verdict.value}): {record.reason}",
                hint=f"arsandbox logs {record.id}",
            )
        return record

    def _judge(self, baseline: Record | None, champion: Champion) -> Record:
        seen, settings = self._seen, self._plan.settings
        failure = self._failure()
        if failure is not None:
            return self._close(*failure)
        assert seen.value is not None  # noqa: S101 - otherwise a failure
        metric = settings.project.metric
        strange = decision.implausible(seen.value, metric.plausible)
        if strange is None and baseline is not None and baseline.metric.value is not None:
            strange = plausibility.too_good(seen.value, baseline.metric.value, metric.goal, metric.jump)
        if strange is not None:
            seen.remark("implausible", f"{metric.name} {strange}")
            return self._close(Verdict.QUARANTINE, f"{metric.name} {strange}")
        if baseline is None:
            return self._close(Verdict.BASELINE, f"baseline {metric.name} {seen.value:.6g}")
        while True:
            assert baseline.metric.value is not None  # noqa: S101 - measured() gives trusted values
            judged = decision.judge(
                seen.value,
                baseline.metric.value,
                name=metric.name,
                goal=metric.goal,
                rule=settings.project.decision.rule,
                min_delta=settings.project.decision.min_delta,
            )
            compared = Baseline(experiment=baseline.id, value=baseline.metric.value)
            self._draft = self._draft.model_copy(update={"decision": judged.decision, "baseline": compared})
            if judged.verdict is not Verdict.KEEP:
                return self._close(judged.verdict, judged.reason)
            blocked = self._not_promotable()
            if blocked:
                return self._close(Verdict.KEEP, f"{judged.reason}; not promoted: {blocked}")
            record = self._promote(judged.reason, champion)
            if record is not None:
                return record
            # Another controller promoted meanwhile: decide again, against the new champion.
            champion = self._plan.champion_now()
            baseline = self._baseline(champion.commit)

    def _failure(self) -> tuple[Verdict, str] | None:
        seen = self._seen
        assert seen.train is not None  # noqa: S101 - measured
        ended = seen.train.termination
        if not seen.ended_well:
            return Verdict(ended.reason.value), f"training: {ended.detail}"
        if seen.tampered:
            return Verdict.TAMPERED, seen.tampered
        if seen.unknowable:
            return Verdict.QUARANTINE, seen.unknowable
        if seen.disturbed:
            return Verdict.INVALID, f"the machine was disturbed: {seen.disturbed[0]}"
        if seen.value is None:
            return Verdict.NO_METRIC, seen.problem or "there is no metric"
        return None

    def _not_promotable(self) -> str | None:
        options = self._plan.options
        if not options.promote:
            return "--no-promote"
        return not_promotable(
            self._plan.settings.policy,
            self._seen.trust,
            accept_self_reported=options.accept_self_reported,
        )

    def _promote(self, reason: str, champion: Champion) -> Record | None:
        """Promote and return the final record, or None when the branch has moved under us."""
        what = self._plan
        record = self._final(Verdict.KEEP, reason)
        self._keep_artifacts()
        ready = promotion.prepare(
            what.repository,
            record,
            candidate=self._candidate.commit,
            branch=what.branch,
            parent=champion.commit,
            old=champion.tip,
            ledger_head=self._ledger.head(),
        )
        record = record.model_copy(update={"promotion": Promotion(commit=ready.commit, ref=ready.ref)})
        self._ledger.intend(record, ready.old)
        if promotion.publish(what.repository, ready):
            return self._ledger.append(record)
        self._ledger.forget_intent(self._place.id)
        if what.branch in what.repository.checked_out_branches():
            return self._close(Verdict.KEEP, f"{reason}; not promoted: {what.branch} has been checked out meanwhile")
        return None

    def _close(self, verdict: Verdict, reason: str) -> Record:
        if verdict in (Verdict.BASELINE, Verdict.KEEP):
            self._keep_artifacts()
        return self._ledger.append(self._final(verdict, reason))

    def _keep_artifacts(self) -> None:
        """Keep what a champion may be evaluated again from; a loser's artifacts go with its run."""
        directory, kept = self._seen.artifact_directory, self._place.keep / "artifacts"
        if directory is not None and directory.exists() and not kept.exists():
            directory.rename(kept)

    def _final(self, verdict: Verdict, reason: str) -> Record:
        seen, what = self._seen, self._plan
        metric = what.settings.project.metric
        train = seen.train
        return self._draft.model_copy(
            update={
                "verdict": verdict,
                "reason": state.printable(reason),
                "metric": MetricInfo(name=metric.name, goal=metric.goal, value=seen.value, source=metric.source),
                "metrics": seen.metrics,
                "self_reported": seen.self_reported,
                "trust": seen.trust or declared_trust(what.settings.project),
                "findings": tuple(seen.findings),
                "stages": tuple(seen.stages),
                "tests": seen.tests,
                "change_set": seen.change_set,
                "artifacts": seen.artifacts,
                "conditions": seen.conditions,
                "timing": Timing(
                    queued_s=round(max(0.0, self._queued_s), 4),
                    setup_s=round(seen.setup_s, 4),
                    run_s=round(train.wall_s if train else 0.0, 4),
                    evaluate_s=round(seen.evaluate_s, 4),
                    diff_s=round(seen.diff_s, 4),
                    teardown_s=round(seen.teardown_s, 4),
                ),
                "usage": train.usage if train else Usage(),
                "exit_code": train.termination.exit_code if train else None,
                "signal": train.termination.signal if train else None,
                "finished_at": utc_now(),
            }
        )

    @property
    def _queued_s(self) -> float:
        seen = self._seen
        busy = seen.setup_s + (seen.train.wall_s if seen.train else 0) + seen.evaluate_s + seen.diff_s + seen.teardown_s
        return time.monotonic() - self._queued - busy

    def _first_draft(self) -> Record:
        """The record as it stands if this controller dies: interrupted."""
        what, project = self._plan, self._plan.settings.project
        now = utc_now()
        return Record(
            id=self._place.id,
            repo=str(what.repository.worktree),
            branch=what.branch,
            base_commit=self._candidate.base,
            candidate_tree=self._candidate.tree,
            patch=self._candidate.patch,
            description=what.options.description if self._candidate is what.candidate else "baseline",
            image=what.image,
            command=project.command,
            seed=self._seed,
            budget_s=what.settings.budget_s,
            grace_s=what.settings.grace_s,
            engine=self._engine.info(),
            policy=PolicyInfo(sha256=what.settings.policy.sha256(), effective=what.settings.effective()),
            metric=MetricInfo(
                name=project.metric.name, goal=project.metric.goal, value=None, source=project.metric.source
            ),
            trust=declared_trust(project),
            setup_sha256=self._setup,
            verdict=Verdict.INTERRUPTED,
            reason="the controller ended before the experiment did",
            started_at=now,
            finished_at=now,
            environment=host.environment(),
            determinism={name: project.environment.get(name, value) for name, value in determinism(self._seed).items()},
        )
