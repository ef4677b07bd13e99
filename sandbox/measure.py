"""Measure one frozen candidate: train it, read back what it left, evaluate the artifacts elsewhere."""

from __future__ import annotations

import os
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from arsandbox.sandbox import devices, hygiene, plausibility, reported, steps
from arsandbox.sandbox.bench import Bench as Bench
from arsandbox.sandbox.bench import Measurement as Measurement
from arsandbox.sandbox.bench import determinism as determinism
from arsandbox.sandbox.caches import compiled
from arsandbox.sandbox.candidate import Candidate
from arsandbox.sandbox.config import EvaluateConfig
from arsandbox.sandbox.cores import Cores
from arsandbox.sandbox.egress.destinations import Allowlist
from arsandbox.sandbox.engines.port import ReadOnlyMount
from arsandbox.sandbox.errors import StateError
from arsandbox.sandbox.evaluation import heldout, roles, verified
from arsandbox.sandbox.evaluation.mounts import TARGET, furnish, python_path
from arsandbox.sandbox.evaluation.tap import DataTap
from arsandbox.sandbox.gpu.grant import Grant
from arsandbox.sandbox.metrics import Metrics
from arsandbox.sandbox.models import Reason, Stage
from arsandbox.sandbox.run_directory import RunDirectory
from arsandbox.sandbox.settings import Settings
from arsandbox.sandbox.slots import Turn, turn
from arsandbox.sandbox.stage import StagePlan, StageRun, last_line, run_stage
from arsandbox.sandbox.workspace.upper import shown

_MOST_NAMED = 20


def measure(bench: Bench, candidate: Candidate, *, seed: int, run: RunDirectory, into: Measurement) -> None:
    """Train and evaluate; fills `into` step by step, so that an interruption loses nothing seen so far.

    Where the bench has slots, it waits for one with its sandbox made, if there are processors for that one too.
    """
    devices.require_for_evaluation(bench, run)
    with turn(bench.slots) as waiting:
        _measure(bench, candidate, seed, run, into, waiting)
        into.gap_s = waiting.gap_s


def _measure(bench: Bench, candidate: Candidate, seed: int, run: RunDirectory, into: Measurement, turn: Turn) -> None:
    for path in heldout.named(candidate.diff, bench.settings.heldout):
        into.remark("names_heldout", f"the patch names {path}, which training does not have")
    _train(bench, candidate, seed, run, into, turn)
    assert into.train is not None  # noqa: S101 - just run
    into.tests_failed = reported.tests_may_fail(bench, into)
    if not into.ended_well or into.tampered:
        return
    if bench.settings.evaluation_gpus.number and devices.spoilt(into):
        into.problem = "it was not evaluated: a GPU was lost or shared while it trained"
        return
    name = bench.settings.project.metric.name
    if bench.settings.project.evaluate is None:
        reported.value(bench, into.reports or run.scratch, run.keep, into)
        return
    if not into.artifacts or into.artifact_directory is None:
        into.problem = f"training left no artifact at {', '.join(bench.settings.project.evaluate.artifacts)}"
        return
    evaluate(bench, candidate, into.artifact_directory, run=run, into=into)
    said = into.self_reported.get(name)
    if into.value is not None and said is not None and plausibility.conflict(said, into.value, bench.sigma):
        into.remark("conflict", f"the run printed {name} {said:.6g}, the evaluation found {into.value:.6g}")


def _train(bench: Bench, candidate: Candidate, seed: int, run: RunDirectory, into: Measurement, turn: Turn) -> None:
    if not bench.settings.gpus.number:
        _train_with(None, bench, candidate, seed, run, into, turn, turn.trained)
        return
    turn.wait()  # whose turn it is leases the devices; the next turn begins when they are given back
    times = list[tuple[float, float]]()
    with devices.lent(bench, bench.settings.gpus, Stage.TRAIN, run=run, into=into) as gpus:
        _train_with(gpus, bench, candidate, seed, run, into, turn, lambda *told: times.append(told))
    for started, ended in times:
        turn.trained(started, ended)


def _train_with(
    gpus: Grant | None, bench: Bench, candidate: Candidate, seed: int, run: RunDirectory, into: Measurement,
    turn: Turn, trained: Callable[[float, float], None],
) -> None:  # fmt: skip
    settings = bench.settings
    began = time.monotonic()
    stack = bench.layers.layers(candidate.commit, without=settings.heldout).paths
    tap = _tap(bench, run)
    if bench.data is not None and tap is None:
        stack = (*stack, bench.data.visible)
    stack = (*stack, *settings.cache_layers(Stage.TRAIN))
    verifying = settings.project.metric.evaluator
    into.evaluator_changed = verified.changed_files(bench.objects, candidate.base, stack, verifying)
    into.artifact_directory = Path(tempfile.mkdtemp(prefix="artifacts-", dir=run.scratch))
    into.artifact_directory.chmod(0o755)
    cores = _cores(settings, turn)
    before = hygiene.read()

    def go() -> None:
        """The sandbox is there: its turn, then the clocks."""
        nonlocal before
        turn.wait()
        before = hygiene.read()
        if tap is not None:
            tap.start()

    try:
        plan = StagePlan(
            stage=Stage.TRAIN,
            image=bench.image,
            command=settings.project.command,
            environment={
                **determinism(seed),
                **settings.environment_for(Stage.TRAIN),
                "ARSANDBOX_BUDGET_SECONDS": f"{settings.budget_s:g}",
                **(_tapped(settings, tap) if tap is not None else {}),
            },
            mounts=(*settings.mounts_for(Stage.TRAIN), *((tap.mount,) if tap is not None else ())),
            layers=stack,
            limits=settings.policy.limits,
            limit_s=settings.deadline_s + (settings.project.startup or 0.0),
            log=run.keep / "train.log",
            metric=settings.project.metric.name,
            cores=cores.listing,
            memory_nodes=cores.memory_nodes,
            egress=Allowlist.of(settings.policy),
            gpus=gpus,
        )
        into.setup_s += time.monotonic() - began - turn.waited_s
        labels = run.labels(bench.longest_s)
        end = tap.end if tap is not None else None
        with run_stage(
            bench.engine, plan, experiment=run.id, scratch=run.scratch, labels=labels, listener=bench.listener,
            end=end, go=go,
        ) as stage:  # fmt: skip
            cores.release()  # before the next training looks for some
            trained(stage.began, stage.began + stage.outcome.wall_s)
            steps.reached("trained")
            own = stage.outcome.usage.cpu_s
            into.conditions = hygiene.conditions(
                before, hygiene.read(), cores=cores.listing, memory_nodes=cores.memory_nodes, own_cpu_s=own
            )
            _read_back(bench, candidate, _judged_by(tap, stage), into)
            leaving = time.monotonic()
        into.teardown_s += time.monotonic() - leaving
    finally:
        cores.release()
        if tap is not None:
            tap.close()
            into.startup_s = tap.startup_s or 0.0
    if verifying:
        into.evaluator_changed += verified.changed_files(bench.objects, candidate.base, stack, verifying)
        if into.evaluator_changed:
            first = into.evaluator_changed[0]
            into.tampered = into.tampered or f"the evaluator's file {first} is not the base commit's"
        elif settings.project.evaluate is None:
            into.trust = "L1"
    into.disturbed = hygiene.disturbances(into.conditions, settings.project.measurement)
    for line in into.disturbed:
        into.remark("disturbed", line)


def _cores(settings: Settings, turn: Turn) -> Cores:
    """Processors for the training. Too few while another one trains: its sandbox is then made when its turn comes."""
    if not settings.project.measurement.pin:
        return Cores((), [])
    cores = Cores.take(settings.policy.limits.cpus)
    if cores.numbers:
        return cores
    turn.wait()
    return Cores.take(settings.policy.limits.cpus)


def _tap(bench: Bench, run: RunDirectory) -> DataTap | None:
    """The data tap of a project that declares `startup`."""
    startup = bench.settings.project.startup
    if startup is None:
        return None
    assert bench.data is not None  # noqa: S101 - the config needs [prepare] for it
    directory = run.scratch / f"tap-{os.urandom(4).hex()}"
    return DataTap(directory, bench.data.visible, limit_s=startup, deadline_s=bench.settings.deadline_s)


def _tapped(settings: Settings, tap: DataTap) -> dict[str, str]:
    return {**tap.environment, "PYTHONPATH": python_path(settings.project.environment)}


def _judged_by(tap: DataTap | None, stage: StageRun) -> StageRun:
    """The stage as it ended; where its tap ended it, that is a timeout."""
    if tap is None or stage.outcome.termination.reason is not Reason.INTERRUPTED:
        return stage
    if tap.problem is not None:
        raise StateError(f"cannot open the data tap: {tap.problem.strerror}", hint="free some space and run again")
    ended = stage.outcome.termination.model_copy(update={"reason": Reason.TIMEOUT, "detail": tap.late})
    return replace(
        stage,
        outcome=stage.outcome.model_copy(update={"termination": ended}),
        record=stage.record.model_copy(update={"termination": ended}),
    )


def _read_back(bench: Bench, candidate: Candidate, stage: StageRun, into: Measurement) -> None:
    """What the run left: its outcome, its change set, its artifacts."""
    into.train = stage.outcome
    into.stages.append(stage.record)
    into.setup_s += stage.setup_s
    _note_reported(stage.metrics, bench.settings.project.metric.name, into)
    if stage.outlived:
        into.remark("outlived", f"processes that outlived the training command, and ended with it: {stage.outlived}")
    scanned = time.monotonic()
    into.change_set = stage.sandbox.changes()
    into.tampered = _tampering(bench, candidate, into)
    into.reports = into.artifact_directory.with_suffix(".reports") if into.artifact_directory else None
    if into.reports is not None:
        reported.collect(stage.sandbox, bench.settings.project.metric, into.reports)
    if stage.outcome.termination.reason is Reason.COMPLETED:
        compiled.collect(bench.settings, stage.sandbox, into)
    declared = bench.settings.project.evaluate
    if declared is not None and stage.outcome.termination.reason is Reason.COMPLETED:
        assert into.artifact_directory is not None  # noqa: S101 - made before the run
        policy = bench.settings.policy
        collected = stage.sandbox.collect(
            declared.artifacts,
            into.artifact_directory,
            most_bytes=policy.artifact_bytes,
            most_files=policy.artifact_files,
        )
        into.artifacts = collected.files
        for refusal in collected.refused[:10]:
            into.remark("artifact_refused", refusal)
    into.diff_s += time.monotonic() - scanned


def evaluate(bench: Bench, candidate: Candidate, artifacts: Path, *, run: RunDirectory, into: Measurement) -> None:
    """Evaluate the files in `artifacts` that `candidate` left, as its base commit says; sets value or problem."""
    plan_of = bench.settings.project.evaluate
    assert plan_of is not None  # noqa: S101 - the caller has looked
    stage = Stage.EVALUATE if plan_of.interface is None else Stage.MODEL
    with devices.lent(bench, bench.settings.evaluation_gpus, stage, run=run, into=into) as gpus:
        if plan_of.interface is not None:
            roles.evaluate_in_roles(bench, candidate, artifacts, gpus, run=run, into=into)
        else:
            _evaluate_apart(bench, candidate.base, plan_of, artifacts, gpus, run, into)


def _evaluate_apart(
    bench: Bench, base: str, plan_of: EvaluateConfig, artifacts: Path, gpus: Grant | None, run: RunDirectory,
    into: Measurement,
) -> None:  # fmt: skip
    """The base commit's evaluator in a container of its own (L2)."""
    settings = bench.settings
    assert plan_of.command is not None  # noqa: S101 - checked by the config
    began = time.monotonic()
    library = Path(tempfile.mkdtemp(prefix="library-", dir=run.scratch))
    furnish(library)
    # The base commit's files lie on top: an artifact can never stand in for the evaluator's code or data.
    stack = (
        *bench.layers.only(base, settings.heldout).paths,
        *bench.layers.layers(base, without=settings.heldout).paths,
    )
    if bench.data is not None:
        stack = (*stack, bench.data.heldout, bench.data.visible)
    plan = StagePlan(
        stage=Stage.EVALUATE,
        image=bench.image,
        command=plan_of.command,
        environment={
            **determinism(0),
            **settings.environment_for(Stage.EVALUATE),
            "PYTHONPATH": python_path(settings.project.environment),
        },
        mounts=(ReadOnlyMount(source=library, target=TARGET), *settings.mounts_for(Stage.EVALUATE)),
        layers=(*stack, artifacts),
        limits=settings.policy_for(Stage.EVALUATE).limits,
        limit_s=plan_of.timeout,
        log=run.keep / "evaluate.log",
        metric=settings.project.metric.name,
        gpus=gpus,
    )
    labels = run.labels(bench.longest_s)
    with run_stage(
        bench.engine, plan, experiment=run.id, scratch=run.scratch, labels=labels, listener=bench.listener
    ) as stage:
        into.stages.append(stage.record)
        name = settings.project.metric.name
        ended = stage.outcome.termination
        if ended.reason is not Reason.COMPLETED:
            words = last_line(plan.log) if ended.reason is not Reason.VRAM else ""  # what it said has no part in that
            into.problem = f"the evaluation ended with {ended.reason.value}: {words or ended.detail}"
        elif name in stage.metrics.conflicting:
            into.problem = f"the evaluation printed differing values of {name}"
        elif name not in stage.metrics.values:
            into.problem = f"the evaluation printed no finite {name}"
        else:
            into.metrics = dict(stage.metrics.values)
            into.value, into.trust = stage.metrics.values[name], "L2"
    into.evaluate_s += time.monotonic() - began


def _note_reported(metrics: Metrics, name: str, into: Measurement) -> None:
    into.self_reported = dict(list(metrics.values.items())[:100])
    if name in metrics.conflicting:
        into.remark("ambiguous", f"the run printed {name} with differing values; the last one is shown")
    if name in metrics.not_finite:
        into.problem = f"the run printed {name} as a value that is not finite"
        into.remark("not_finite", into.problem)


def _tampering(bench: Bench, candidate: Candidate, into: Measurement) -> str | None:
    """Why the run counts as tampered with: it changed its own source or a protected file. Else None."""
    rules, changes = bench.settings.rules, into.change_set
    if changes.truncated:
        into.remark("change_set_truncated", "the run left more new files than are listed")
    if changes.incomplete:
        into.unknowable = "the run left so many entries that what it changed cannot be told"
        into.remark("change_set_incomplete", into.unknowable)
    for refusal in changes.refused[:10]:
        into.remark("left_behind", refusal)
    tracked = [change for change in changes.paths if change.change != "added"]
    if not tracked:
        return None
    # Changed paths are known by the names that can be shown; so is what the run was given.
    given = sorted((shown(os.fsencode(e.path)), e.path) for e in bench.objects.entries(candidate.tree))
    names = [name for name, _ in given]
    found: str | None = None
    others = 0
    for change in tracked:
        first = bisect_left(names, change.path)
        for name, path in given[first:]:
            if name != change.path and not name.startswith(change.path):
                break
            if name != change.path and not name.startswith(f"{change.path}/"):
                continue
            if rules.is_editable(path) or rules.is_protected(path):
                found = found or f"the run {change.change} {name} while it was measured"
            else:
                others += 1
                if others <= _MOST_NAMED:
                    into.remark("tracked_changed", f"the run {change.change} {name}")
    if others > _MOST_NAMED:
        into.remark("tracked_changed", f"the run changed {others} files that it was given")
    if found:
        into.remark("source_changed", found)
    return found
