"""The record of an experiment: everything that is written down, read back and shown (docs/records.md)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from arsandbox.sandbox.models import (
    ChangeSet,
    EgressReport,
    EngineInfo,
    Finding,
    Goal,
    ImageRef,
    Model,
    Patch,
    Stage,
    Termination,
    Trust,
    Usage,
    Verdict,
)

SCHEMA_VERSION = 2


class PolicyInfo(Model):
    """The effective policy of the training stage."""

    sha256: str
    effective: dict[str, Any]


class MetricInfo(Model):
    """The metric that decides, where its value came from, and the value (None: there is none)."""

    name: str
    goal: Goal
    value: float | None
    source: str


class Baseline(Model):
    """What a candidate is compared with: an experiment's id and its trusted value."""

    experiment: str
    value: float


class Decision(Model):
    """The rule that was applied, the values it saw, and its bound (docs/decisions.md).

    `runs` are the candidate's values, `champion_runs` the champion's, in the order of the pairs, and
    `experiments` the records that hold them. `difference` is the mean gain (positive: better) in the
    metric's unit, `sigma` the calibrated spread. `bound` is the gain that a rule on one run asked for; for a
    test on pairs, the p-value that a look asks for. `tests` counts the confirmations on this branch, this
    one included, and `alpha_spent` is the sum of their error rates.
    """

    rule: str
    runs: tuple[float, ...] = ()
    bound: float | None = None
    champion_runs: tuple[float, ...] = ()
    experiments: tuple[str, ...] = ()
    pairs: int = 0
    difference: float | None = None
    p_value: float | None = None
    alpha: float | None = None
    sigma: float | None = None
    sigma_df: int | None = None
    unstable: bool = False
    tests: int | None = None
    alpha_spent: float | None = None


class Part(Model):
    """What a record is for that is no experiment of its own but one of the runs that a decision rests on.

    `of` is the experiment that it belongs to; `against` the champion's tree that a confirming pair is
    about, and `pair` its number from 1.
    """

    of: str
    role: Literal["calibration", "confirmation"]
    side: Literal["champion", "candidate"]
    pair: int
    against: str = ""


class Promotion(Model):
    """A commit made from a winning candidate, and the ref that was moved to it."""

    commit: str
    ref: str


class TestReport(Model):
    """A test suite's report as the host read it, held against the tests that the base is known to have.

    `expected_sha256` names their list; `lost` are those of them that did not pass although they should
    have, the first few by name: missing, skipped or failed.
    """

    expected: int
    passed: int
    missing: int
    skipped: int
    failed: int
    lost: tuple[str, ...] = ()
    expected_sha256: str


class Timing(Model):
    """Seconds by the host's monotonic clock; `startup_s` is the part of `run_s` before READY, where declared.

    `gap_s`, in a loop: from the end of the training stage before to the start of this one; None for a first one.
    """

    queued_s: float = 0.0
    setup_s: float = 0.0
    run_s: float = 0.0
    startup_s: float = 0.0
    evaluate_s: float = 0.0
    diff_s: float = 0.0
    teardown_s: float = 0.0
    gap_s: float | None = None


class CacheUse(Model):
    """A cache that stages saw: its name, kind, the digest of its contents, and which stages."""

    name: str
    kind: str
    sha256: str
    stages: tuple[str, ...]


class StageRecord(Model):
    """One stage's run: how it ended, what it used, and the digest of its log. `egress`: None had no network."""

    stage: Stage
    termination: Termination
    usage: Usage
    started_at: str
    wall_s: float
    log_sha256: str
    log_truncated: bool
    egress: EgressReport | None = None


class Round(Model):
    """Where in a loop an experiment stands: the loop's id, the round from 1, and who proposed the edit.

    `stage` is the proposer's sandbox: how it ended, what it used, and every request it made of the network.
    """

    loop: str
    number: int
    proposer: str = ""
    stage: StageRecord | None = None


class Conditions(Model):
    """The machine before and after a measurement: what may disturb it (sandbox/hygiene.py)."""

    cores: str = ""
    memory_nodes: str = ""
    governor: str = ""
    turbo: str = ""
    smt: str = ""
    load_before: float = 0.0
    load_after: float = 0.0
    foreign_cpu: float = 0.0
    swapped_pages: int = 0
    major_faults: int = 0
    throttle_events: int = 0
    cpu_pressure: float = 0.0
    memory_pressure: float = 0.0
    io_pressure: float = 0.0


class Grade(StrEnum):
    """How far a rerun agrees: the artifact evaluated again, exact, statistical, differences on another host."""

    R0 = "R0"
    R1 = "R1"
    R2 = "R2"
    R3 = "R3"


class Difference(Model):
    """A fact of the machine that has changed since the record was made."""

    fact: str
    then: str
    now: str


class Rerun(Model):
    """A rerun of a recorded experiment: the grades reached, what was seen, and the interval it was held against.

    `interval` bounds the recorded quantity (the value, or for a promotion its difference to the
    baseline) as predicted by the fresh runs; `values` and `baseline_values` are those runs' values,
    `seeds` the seeds of all runs in the order in which they were made.
    """

    of: str
    mode: Literal["exact", "statistical"]
    reached: tuple[Grade, ...]
    recorded: float
    quantity: Literal["value", "difference"]
    values: tuple[float, ...] = ()
    baseline_values: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    interval: tuple[float, float] | None = None
    artifacts_equal: bool | None = None
    differences: tuple[Difference, ...] = ()


class Record(Model):
    """The record of one experiment, as `run --json` prints it and the ledger keeps it.

    `prepared` is the prepare stage that made the data, perhaps for an earlier experiment. `moved_from` is the
    experiment that measured the same edit on an older champion, and in whose place this one stands.
    """

    schema_version: int = SCHEMA_VERSION
    id: str
    repo: str
    branch: str
    base_commit: str
    candidate_tree: str
    patch: Patch
    description: str = ""
    image: ImageRef
    command: tuple[str, ...]
    seed: int
    budget_s: float
    grace_s: float
    engine: EngineInfo | None
    policy: PolicyInfo
    metric: MetricInfo
    metrics: dict[str, float] = Field(default_factory=dict)
    self_reported: dict[str, float] = Field(default_factory=dict)
    trust: Trust
    setup_sha256: str
    data_sha256: str | None = None
    caches: tuple[CacheUse, ...] = ()
    baseline: Baseline | None = None
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...] = ()
    decision: Decision | None = None
    promotion: Promotion | None = None
    prepared: StageRecord | None = None
    stages: tuple[StageRecord, ...] = ()
    tests: TestReport | None = None
    change_set: ChangeSet = ChangeSet()
    artifacts: dict[str, str] = Field(default_factory=dict)
    timing: Timing = Timing()
    usage: Usage = Usage()
    exit_code: int | None = None
    signal: int | None = None
    started_at: str
    finished_at: str
    environment: dict[str, str] = Field(default_factory=dict)
    conditions: Conditions | None = None
    determinism: dict[str, str] = Field(default_factory=dict)
    rerun: Rerun | None = None
    part: Part | None = None
    confirms: str | None = None
    moved_from: str | None = None
    round: Round | None = None
    previous_hash: str = ""
    ledger_hash: str = ""
