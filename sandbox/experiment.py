"""One experiment from request to record: freeze, gate, prepare, measure, judge, promote, write down.

Every step may be the last one that this process lives: what exists is announced in the ledger or
labelled before it exists, and recovery.py finishes it at the next start.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace

from arsandbox.sandbox import candidate as candidates
from arsandbox.sandbox import decision, host, noise, plausibility, prepared, promoting, recovery, reported, state, steps
from arsandbox.sandbox.bench import declared_trust
from arsandbox.sandbox.caches import compiled
from arsandbox.sandbox.candidate import Candidate
from arsandbox.sandbox.decision import Noise
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import ArsandboxError, Interrupted, UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.gpu import grant as gpus
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.measure import Bench, Measurement, determinism, measure
from arsandbox.sandbox.models import Finding, Trust, Usage, Verdict, utc_now
from arsandbox.sandbox.planning import Champion as Champion
from arsandbox.sandbox.planning import Plan as Plan
from arsandbox.sandbox.planning import Request as Request
from arsandbox.sandbox.planning import champion_of as champion_of
from arsandbox.sandbox.planning import plan as plan
from arsandbox.sandbox.planning import require_image as require_image
from arsandbox.sandbox.record import Baseline, MetricInfo, Part, PolicyInfo, Record, Timing
from arsandbox.sandbox.requirements import not_promotable, require_policies
from arsandbox.sandbox.run_directory import RunDirectory, measured_in, run_directory
from arsandbox.sandbox.slots import NotBegun
from arsandbox.sandbox.workspace.layers import LayerStore


def run(what: Plan, engine: Engine, listener: Listener, *, recovering: bool = True) -> Record:
    """Run the experiment and return its ledger record. Raises ArsandboxError for our own failures.

    The baseline is measured first when none is recorded for this set-up; a disturbed measurement is
    kept as `invalid` and made again. On KeyboardInterrupt the sandbox is ended, the record says
    `interrupted`, and Interrupted is raised. A loop has recovered what dead controllers left already. Where another
    candidate was promoted meanwhile, a winner ends as `pending` with the finding `champion_moved`: confirmation.confirm
    puts it onto that one. Raises NotBegun, and leaves no record, if the plan's slots do.
    """
    if recovering:
        for line in recovery.recover(what.repository.state, engine):
            listener.note(f"cleaned up after a dead controller: {line}")
    require_able(what, engine)
    if what.branch != what.preferred_branch:
        listener.note(f"{what.preferred_branch} is checked out and never moved: a winner goes to {what.branch}")
    for path in what.candidate.left_out[:5]:
        listener.note(f"not part of the candidate: {path} (untracked, not in `editable`)")
    with Ledger.open(what.repository.state) as ledger:
        return _measured(what, what.candidate, engine, listener, ledger)


def require_able(what: Plan, engine: Engine) -> None:
    """Raises MachineError unless `engine` is as strong as the policies ask, and has the image and the GPUs."""
    require_policies(what.settings.used_policies, engine.info())
    require_image(engine, what.image)
    if what.settings.needed_gpus.number:
        labels = host.labels(f"gpu-trial-{state.new_experiment_id()}", utc_now())
        gpus.require(what.settings.needed_gpus, engine, what.image, labels=labels)


def prepare(what: Plan, engine: Engine, listener: Listener) -> str | None:
    """Run the prepare stage if its outputs are not cached; returns their digest, None without a stage."""
    recovery.recover(what.repository.state, engine)
    require_policies(what.settings.used_policies, engine.info())
    require_image(engine, what.image)
    try:
        with Ledger.open(what.repository.state) as ledger, run_directory(what.repository.state) as place:
            data = _Experiment(what, what.candidate, engine, listener, ledger, place).bench().data
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; the sandbox is gone") from error
    return data.sha256 if data else None


def measure_part(
    what: Plan, candidate: Candidate, part: Part, engine: Engine, listener: Listener, ledger: Ledger
) -> Record:
    """One run of `candidate` with a fresh seed, recorded as the `part` that it is of another experiment's decision.

    Its verdict is `measured`, or says why there is no value to believe. Raises as `run` does.
    """
    return _measured(what, candidate, engine, listener, ledger, part)


def baseline_of(what: Plan, champion: str, engine: Engine, listener: Listener, ledger: Ledger) -> Record:
    """The record of the commit `champion` under the plan's set-up, measured now when there is none."""
    with run_directory(what.repository.state) as place:
        return _Experiment(what, what.candidate, engine, listener, ledger, place).baseline(champion)


def without_run(
    what: Plan, verdict: Verdict, reason: str, findings: Sequence[Finding], engine: Engine, listener: Listener
) -> Record:
    """Record an attempt of which there is nothing to run: the proposer failed, or what it proposed is no candidate."""
    with Ledger.open(what.repository.state) as ledger, run_directory(what.repository.state) as place:
        record = _Experiment(what, what.candidate, engine, listener, ledger, place).close_without_run(
            verdict, reason, findings
        )
    listener.finished(record)
    return record


def _measured(
    what: Plan, candidate: Candidate, engine: Engine, listener: Listener, ledger: Ledger, part: Part | None = None
) -> Record:
    """The candidate's record; measured again, as often as the project says, while the machine was disturbed."""
    for left in range(what.settings.project.measurement.repeat, -1, -1):
        with run_directory(what.repository.state) as place:
            record = _Experiment(what, candidate, engine, listener, ledger, place, part).run()
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
        part: Part | None = None,
    ) -> None:
        self._part = part
        self._plan, self._candidate, self._engine = what, candidate, engine
        self._listener, self._ledger, self._place = listener, ledger, place
        self._queued = time.monotonic()
        # Fresh for every experiment, the baseline's too: a shared seed would promote a lucky one.
        # That the user names one binds the measurement alone, never what a decision is confirmed with.
        named = what.options.seed if part is None else None
        self._seed = named if named is not None else secrets.randbits(31)
        self._setup = ""
        self._seen = Measurement()
        # Runs of the champion, and parts of another experiment's decision, say nothing of where the edit came from.
        self._own = candidate is what.candidate and part is None
        if self._own:
            self._seen.findings.extend(what.findings)
        self._draft = self._first_draft()

    def run(self) -> Record:
        try:
            (self._place.keep / "patch.diff").write_bytes(self._candidate.diff)
            self._ledger.begin(self._draft)
            steps.reached("begun")
            record = self._run()
            steps.reached("recorded")
            return record
        except NotBegun:
            self._ledger.withdraw(self._place.id)
            shutil.rmtree(self._place.keep, ignore_errors=True)
            raise
        except KeyboardInterrupt as error:
            if recovery.finish_promotion(self._ledger, self._place.id) is not None:
                raise Interrupted(f"interrupted while {self._place.id} was promoted; that was completed") from error
            self._close(Verdict.INTERRUPTED, "interrupted by the user")
            raise Interrupted(f"experiment {self._place.id} was interrupted; its sandbox is gone") from error
        except (ArsandboxError, OSError) as error:
            if self._ledger.intent(self._place.id) is None:
                self._close(Verdict.INTERRUPTED, f"not finished: {error}")
            raise

    def close_without_run(self, verdict: Verdict, reason: str, findings: Sequence[Finding]) -> Record:
        (self._place.keep / "patch.diff").write_bytes(self._candidate.diff)
        self._ledger.begin(self._draft)
        self._seen.findings.extend(findings)
        return self._close(verdict, reason)

    def _run(self) -> Record:
        what = self._plan
        if what.refusals and not self._candidate.is_base:
            return self._close(Verdict.REJECTED, f"the patch is refused: {what.refusals[0]}")
        bench = self.bench()
        self._set_up(bench)
        spread = noise.noise_of(self._ledger, self._setup)
        bench = replace(bench, sigma=spread.sigma if spread else None)
        steps.reached("prepared")
        champions = self._candidate.is_base or (self._part is not None and self._part.side == "champion")
        baseline = None if champions else self.baseline(what.champion.commit)
        if baseline is not None:
            earlier = self._submitted_before(baseline)
            if earlier is not None:
                return self._close(Verdict.DISCARD, f"the same code was measured as {earlier}")
            kept = measured_in(what.repository.state, baseline)
            bench = replace(bench, expected_tests=reported.expected_tests(baseline, kept))
        measure(bench, self._candidate, seed=self._seed, run=self._place, into=self._seen)
        steps.reached("measured")
        return self._judge(baseline, what.champion)

    def _submitted_before(self, baseline: Record) -> str | None:
        """What to say of the experiment that measured this very tree against this champion: again would be luck."""
        if self._plan.settings.rule.design is None or self._part is not None or self._plan.options.seed is not None:
            return None
        earlier = self._ledger.judged(self._candidate.tree, self._setup, against=baseline.candidate_tree)
        if earlier is None:
            return None
        earlier = self._ledger.confirmation(earlier.id) or earlier
        self._seen.remark("resubmitted", f"{earlier.id} ({earlier.verdict.value}) has the same tree")
        if earlier.verdict is Verdict.PENDING:
            return f"{earlier.id}: it gets no new draw, and is pending (arsandbox confirm {earlier.id})"
        return f"{earlier.id}: it gets no new draw"

    def _set_up(self, bench: Bench) -> None:
        data = bench.data.sha256 if bench.data else None
        self._setup = self._plan.settings.digest(
            image=self._plan.image.digest, fixed_tree=self._plan.fixed[0], data=data
        )
        made = bench.data.stage if bench.data else None
        self._draft = self._draft.model_copy(
            update={"setup_sha256": self._setup, "data_sha256": data, "prepared": made}
        )

    def bench(self) -> Bench:
        """Where the candidate is measured; runs the prepare stage when its outputs are not there yet."""
        what = self._plan
        require_policies(what.settings.used_policies, self._engine.info())
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
        audit = (what.options.audit or settings.audits) and (self._part is None or self._part.side == "candidate")
        return Bench(self._engine, objects, layers, settings, what.image, data, listener, audit, slots=what.slots)

    def baseline(self, champion: str) -> Record:
        """The champion's record under this set-up, measured now when there is none."""
        if not self._setup:
            self._set_up(self.bench())
        tree = self._plan.repository.objects.tree_of(champion)
        # In this order: a branch moves while the promotion is noted, and its record is written before the note goes.
        found = self._ledger.promoting(champion, self._setup) or self._ledger.measured(tree, self._setup)
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
        seen, what = self._seen, self._plan
        settings = what.settings
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
        if self._part is not None:
            return self._close(Verdict.MEASURED, f"{self._part.role} run: {metric.name} {seen.value:.6g}")
        if baseline is None:
            return self._close(Verdict.BASELINE, f"baseline {metric.name} {seen.value:.6g}")
        rule, patch = settings.rule, self._candidate.patch
        reference = noise.champion_mean(self._ledger, baseline)
        spread = noise.noise_of(self._ledger, self._setup) if rule.design else None
        judged = decision.screen(seen.value, reference, spread, rule, simpler=patch.deletions > patch.insertions)
        compared = Baseline(experiment=baseline.id, value=reference)
        self._draft = self._draft.model_copy(update={"decision": judged.decision, "baseline": compared})
        steps.reached("judged")
        if judged.verdict is Verdict.DISCARD and self._is_confirmed_on_this_champion(spread):
            reason = f"{judged.reason}; it was better than the champion before: to be confirmed on this one"
            return self._close(Verdict.PENDING, reason)
        if judged.verdict is not Verdict.KEEP:
            return self._close(judged.verdict, judged.reason)
        blocked = unpromoted(what, seen.trust)
        if blocked:
            return self._close(Verdict.KEEP, f"{judged.reason}; not promoted: {blocked}")
        record = self._promote(judged.reason, champion)
        if record is not None:
            return record
        now = what.champion_now()
        if now == champion:
            return self._close(Verdict.KEEP, f"{judged.reason}; not promoted: {what.branch} cannot be moved")
        # It was never put onto what was promoted meanwhile; to promote its tree would undo that.
        moved = f"{now.commit[:12]} was promoted meanwhile"
        seen.remark("champion_moved", moved)
        return self._close(Verdict.PENDING, f"{judged.reason}; {moved}: to be measured on that one")

    def _is_confirmed_on_this_champion(self, spread: Noise | None) -> bool:
        """Whether only confirming runs may drop the candidate: the same edit won on an older champion."""
        statistical = self._plan.settings.rule.design is not None and not (spread is not None and spread.deterministic)
        return statistical and self._own and self._plan.moved_from is not None

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

    def _promote(self, reason: str, champion: Champion) -> Record | None:
        """Promote and return the final record, or None when the branch has moved under us."""
        what = self._plan
        record = self._final(Verdict.KEEP, reason)
        self._keep_artifacts()
        promoted = promoting.promote(
            what.repository,
            self._ledger,
            record,
            candidate=self._candidate.commit,
            branch=what.branch,
            champion=champion,
        )
        if promoted is not None:
            return promoted
        if what.branch in what.repository.checked_out_branches():
            return self._close(Verdict.KEEP, f"{reason}; not promoted: {what.branch} has been checked out meanwhile")
        return None

    def _close(self, verdict: Verdict, reason: str) -> Record:
        if verdict in (Verdict.BASELINE, Verdict.KEEP, Verdict.PENDING):
            self._keep_artifacts()
        return self._ledger.append(self._final(verdict, reason))

    def _keep_artifacts(self) -> None:
        """Keep what a champion may be evaluated again from; a loser's artifacts go with its run."""
        directory, kept = self._seen.artifact_directory, self._place.keep / "artifacts"
        if directory is not None and directory.exists() and not kept.exists():
            directory.rename(kept)
        compiled.keep(self._seen, self._place.keep)

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
                    startup_s=round(seen.startup_s, 4),
                    evaluate_s=round(seen.evaluate_s, 4),
                    diff_s=round(seen.diff_s, 4),
                    teardown_s=round(seen.teardown_s, 4),
                    gap_s=None if seen.gap_s is None else round(seen.gap_s, 4),
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

    def _description(self) -> str:
        if self._part is not None:
            return f"{self._part.role} run of the {self._part.side} for {self._part.of}"
        return self._plan.options.description if self._candidate is self._plan.candidate else "baseline"

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
            description=self._description(),
            part=self._part,
            round=what.round,
            moved_from=what.moved_from if self._own else None,
            image=what.image,
            caches=what.settings.cache_uses(),
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


def unpromoted(what: Plan, trust: Trust | None) -> str | None:
    """Why a winner whose value has this trust stays unpromoted, or None."""
    if not what.options.promote:
        return "--no-promote"
    return not_promotable(what.settings.policy, trust, accept_self_reported=what.options.accept_self_reported)
