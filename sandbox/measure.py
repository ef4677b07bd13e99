"""Measure one frozen candidate: train it, read back what it left, evaluate the artifacts elsewhere."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from arsandbox.sandbox import state
from arsandbox.sandbox.candidate import Candidate
from arsandbox.sandbox.engines.port import Engine, Outcome
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.metrics import Metrics
from arsandbox.sandbox.models import ChangeSet, Finding, ImageRef, Reason, Stage, StageRecord
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.prepared import PreparedData
from arsandbox.sandbox.settings import Settings
from arsandbox.sandbox.stage import StagePlan, run_stage
from arsandbox.sandbox.workspace.layers import LayerStore

# A self-reported value further than this from the trusted one (as a share of it) is a finding.
CONFLICT_SHARE = 0.1
_MOST_INSPECTED = 200


@dataclass(frozen=True)
class Bench:
    """Where and with what a candidate is measured."""

    engine: Engine
    objects: ObjectStore
    layers: LayerStore
    settings: Settings
    image: ImageRef
    data: PreparedData | None
    listener: Listener


@dataclass
class Measurement:
    """What was seen. `value` is the metric that counts, None where there is none."""

    value: float | None = None
    trusted: bool = False
    tampered: str | None = None
    problem: str | None = None
    train: Outcome | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    self_reported: dict[str, float] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    change_set: ChangeSet = field(default_factory=ChangeSet)
    artifacts: dict[str, str] = field(default_factory=dict)
    setup_s: float = 0.0
    evaluate_s: float = 0.0
    diff_s: float = 0.0
    teardown_s: float = 0.0

    def remark(self, code: str, detail: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(code=code, detail=detail))


def measure(
    bench: Bench,
    candidate: Candidate,
    *,
    seed: int,
    experiment: str,
    keep: Path,
    scratch: Path,
    labels: Mapping[str, str],
    into: Measurement,
) -> None:
    """Train and evaluate; fills `into` step by step, so that an interruption loses nothing seen so far."""
    artifacts = _train(bench, candidate, seed, experiment, keep, scratch, labels, into)
    assert into.train is not None  # noqa: S101 - just run
    if into.train.termination.reason is not Reason.COMPLETED or into.tampered:
        return
    name = bench.settings.project.metric.name
    if bench.settings.project.evaluate is None:
        into.value = into.self_reported.get(name)
        into.metrics = dict(into.self_reported)
        if into.value is None:
            into.problem = into.problem or f"the output has no {name}"
        return
    if not into.artifacts:
        into.problem = f"training left no artifact at {', '.join(bench.settings.project.evaluate.artifacts)}"
        return
    _evaluate(bench, candidate, artifacts, experiment, keep, scratch, labels, into)
    reported = into.self_reported.get(name)
    if into.value is not None and reported is not None:
        distance = abs(reported - into.value)
        if distance > CONFLICT_SHARE * abs(into.value):
            into.remark("conflict", f"the run printed {name} {reported:.6g}, the evaluation found {into.value:.6g}")


def _train(
    bench: Bench, candidate: Candidate, seed: int, experiment: str, keep: Path, scratch: Path,
    labels: Mapping[str, str], into: Measurement,
) -> Path:  # fmt: skip
    settings = bench.settings
    began = time.monotonic()
    stack = bench.layers.layers(candidate.commit, without=settings.heldout).paths
    if bench.data is not None:
        stack = (*stack, bench.data.visible)
    plan = StagePlan(
        stage=Stage.TRAIN,
        image=bench.image,
        command=settings.project.command,
        environment={
            **settings.project.environment,
            "ARSANDBOX_BUDGET_SECONDS": f"{settings.budget_s:g}",
            "ARSANDBOX_SEED": str(seed),
            "PYTHONHASHSEED": str(seed),
        },
        layers=stack,
        limits=settings.policy.limits,
        limit_s=settings.deadline_s,
        log=keep / "train.log",
        metric=settings.project.metric.name,
    )
    layered = time.monotonic()
    artifacts = Path(tempfile.mkdtemp(prefix="artifacts-", dir=scratch))
    artifacts.chmod(0o755)
    with run_stage(
        bench.engine, plan, experiment=experiment, scratch=scratch, labels=labels, listener=bench.listener
    ) as run:
        into.train = run.outcome
        into.stages.append(run.record)
        into.setup_s += layered - began + run.setup_s
        _note_reported(run.metrics, settings.project.metric.name, into)
        scanned = time.monotonic()
        into.change_set = run.sandbox.changes()
        into.tampered = _tampering(bench, candidate, into)
        evaluate = settings.project.evaluate
        if evaluate is not None and run.outcome.termination.reason is Reason.COMPLETED:
            policy = settings.policy
            collected = run.sandbox.collect(
                evaluate.artifacts,
                artifacts,
                most_bytes=policy.artifact_bytes,
                most_files=policy.artifact_files,
            )
            into.artifacts = collected.files
            for refusal in collected.refused[:10]:
                into.remark("artifact_refused", refusal)
        into.diff_s += time.monotonic() - scanned
        leaving = time.monotonic()
    into.teardown_s += time.monotonic() - leaving
    return artifacts


def _evaluate(
    bench: Bench, candidate: Candidate, artifacts: Path, experiment: str, keep: Path, scratch: Path,
    labels: Mapping[str, str], into: Measurement,
) -> None:  # fmt: skip
    settings = bench.settings
    evaluate = settings.project.evaluate
    assert evaluate is not None  # noqa: S101 - the caller has looked
    began = time.monotonic()
    # The base commit's files lie on top: an artifact can never stand in for the evaluator's code or data.
    stack = (
        *bench.layers.only(candidate.base, settings.heldout).paths,
        *bench.layers.layers(candidate.base, without=settings.heldout).paths,
    )
    if bench.data is not None:
        stack = (*stack, bench.data.heldout, bench.data.visible)
    plan = StagePlan(
        stage=Stage.EVALUATE,
        image=bench.image,
        command=evaluate.command,
        environment={**settings.project.environment, "PYTHONHASHSEED": "0"},
        layers=(*stack, artifacts),
        limits=settings.policy.limits,
        limit_s=evaluate.timeout,
        log=keep / "evaluate.log",
        metric=settings.project.metric.name,
    )
    with run_stage(
        bench.engine, plan, experiment=experiment, scratch=scratch, labels=labels, listener=bench.listener
    ) as run:
        into.stages.append(run.record)
        name = settings.project.metric.name
        ended = run.outcome.termination
        if ended.reason is not Reason.COMPLETED:
            into.problem = f"the evaluation ended with {ended.reason.value}: {_last_line(plan.log) or ended.detail}"
        elif name in run.metrics.conflicting:
            into.problem = f"the evaluation printed differing values of {name}"
        elif name not in run.metrics.values:
            into.problem = f"the evaluation printed no finite {name}"
        else:
            into.metrics = dict(run.metrics.values)
            into.value, into.trusted = run.metrics.values[name], True
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
        into.remark("change_set_truncated", "the run left more changes than are listed")
    for refusal in changes.refused[:10]:
        into.remark("left_behind", refusal)
    tracked = [change for change in changes.paths if change.change != "added"]
    if len(tracked) > _MOST_INSPECTED:
        into.remark("tracked_changed", f"the run changed {len(tracked)} paths that it was given")
    found: str | None = None
    for change in tracked[:_MOST_INSPECTED]:
        for path in bench.objects.files_below(candidate.commit, change.path):
            if rules.is_editable(path) or rules.is_protected(path):
                found = found or f"the run {change.change} {path} while it was measured"
            else:
                into.remark("tracked_changed", f"the run {change.change} {path}")
                break
    if found:
        into.remark("source_changed", found)
    return found


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 2000))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return state.printable(lines[-1])[:300] if lines else ""
