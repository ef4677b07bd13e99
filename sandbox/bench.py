"""Where a candidate is measured, and what was seen of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from arsandbox.sandbox.config import ProjectConfig
from arsandbox.sandbox.engines.port import Engine, Outcome
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.models import ChangeSet, Finding, ImageRef, Reason, Trust
from arsandbox.sandbox.objects import ObjectStore
from arsandbox.sandbox.prepared import PreparedData
from arsandbox.sandbox.record import Conditions, StageRecord, TestReport
from arsandbox.sandbox.settings import Settings
from arsandbox.sandbox.slots import TrainingSlots
from arsandbox.sandbox.workspace.layers import LayerStore


def determinism(seed: int) -> dict[str, str]:
    """The switches that make a run as repeatable as its libraries allow (their documentation has each)."""
    return {
        "ARSANDBOX_SEED": str(seed),
        "PYTHONHASHSEED": str(seed),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TF_DETERMINISTIC_OPS": "1",
        "XLA_FLAGS": "--xla_gpu_deterministic_ops=true",
    }


@dataclass(frozen=True)
class Bench:
    """Where and with what a candidate is measured.

    `audit`: its model is probed in a second box (L4), and with `sealed` the sealed text is scored as well;
    `sigma` is the metric's calibrated spread, None where it is not known.
    """

    engine: Engine
    objects: ObjectStore
    layers: LayerStore
    settings: Settings
    image: ImageRef
    data: PreparedData | None
    listener: Listener
    audit: bool = False
    sealed: bool = False
    sigma: float | None = None
    expected_tests: tuple[str, ...] | None = None
    slots: TrainingSlots | None = None

    @property
    def longest_s(self) -> float:
        """Seconds after which every stage must be over."""
        project = self.settings.project
        return self.settings.deadline_s + sum(s.timeout for s in (project.prepare, project.evaluate) if s is not None)


@dataclass
class Measurement:
    """What was seen. `value` is the metric that counts, `trust` how it came about; None where there is none."""

    value: float | None = None
    trust: Trust | None = None
    tampered: str | None = None
    tests_failed: bool = False
    unknowable: str | None = None
    problem: str | None = None
    train: Outcome | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    self_reported: dict[str, float] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    tests: TestReport | None = None
    change_set: ChangeSet = field(default_factory=ChangeSet)
    artifacts: dict[str, str] = field(default_factory=dict)
    artifact_directory: Path | None = None
    compiled_directory: Path | None = None
    reports: Path | None = None
    evaluator_changed: list[str] = field(default_factory=list)
    conditions: Conditions | None = None
    disturbed: list[str] = field(default_factory=list)
    setup_s: float = 0.0
    startup_s: float = 0.0
    evaluate_s: float = 0.0
    diff_s: float = 0.0
    teardown_s: float = 0.0
    gap_s: float | None = None

    @property
    def ended_well(self) -> bool:
        """Whether training ended in a way that leaves a value to be read."""
        return self.train is not None and (self.train.termination.reason is Reason.COMPLETED or self.tests_failed)

    def remark(self, code: str, detail: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(code=code, detail=detail))


def declared_trust(project: ProjectConfig) -> Trust:
    """The trust level that a value under this config has, unless it is audited."""
    if project.evaluate is None:
        return "L1" if project.metric.evaluator else "L0"
    return "L2" if project.evaluate.interface is None else "L3"
