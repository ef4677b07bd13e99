"""`arsandbox.toml` (or `[tool.arsandbox]` in pyproject.toml), read from the base commit.

The working tree's copy is never read: a candidate must not set its own limits.
"""

from __future__ import annotations

import difflib
import tomllib
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from arsandbox.policies.model import HostPorts, Limits, Network, Policy, PolicyFile
from arsandbox.policies.rules import EVERYTHING
from arsandbox.sandbox.caches.kinds import COMPILED, Kind
from arsandbox.sandbox.config_values import (
    Bytes,
    CacheName,
    CacheStage,
    Command,
    Directory,
    EngineName,
    EnvironmentName,
    Finite,
    Gpus,
    Pattern,
    RepositoryPath,
    Seconds,
    Text,
)
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.models import Goal
from arsandbox.sandbox.state import printable

FILE_NAME = "arsandbox.toml"
DEFAULT_ENGINE = "docker"


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricConfig(Section):
    """The number that decides. `source` is `evaluate` (trusted) or one of the self-reported ones.

    `stdout` and `file` are what the run prints or writes to `file`; `pytest` and `coverage` are the junit and
    Cobertura reports in `file`, or without one the closing lines on standard output. `tests` is a junit report
    beside a coverage one: coverage counts only while the expected tests pass. `evaluator` names the files that
    compute a self-reported number: they are protected, and verified by hash before and after the run (L1).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.:/-]{0,99}$")] = "val_bpb"
    goal: Goal = "min"
    source: Literal["evaluate", "stdout", "file", "pytest", "coverage"] = "stdout"
    file: RepositoryPath | None = None
    tests: RepositoryPath | None = None
    plausible: tuple[Finite, Finite] | None = None
    jump: Annotated[Finite, Field(gt=0)] | None = None
    evaluator: tuple[RepositoryPath, ...] = ()


class PrepareConfig(Section):
    """Trusted code of the base commit that makes the data once; its outputs are frozen by digest.

    With `network = "allowlist"` it reaches `hosts`, exact host:port pairs, through a proxy, as far as the policy
    allows them.
    """

    command: Command
    outputs: Annotated[tuple[RepositoryPath, ...], Field(min_length=1)]
    timeout: Seconds = 600.0
    network: Network = "none"
    hosts: HostPorts = ()

    def problem(self) -> str | None:
        """What is missing or too much, or None."""
        if self.network == "none" and self.hosts:
            return '[prepare] hosts are reached with network = "allowlist" alone'
        if self.network == "allowlist" and not self.hosts:
            return '[prepare] network = "allowlist" needs hosts = ["host:port", ...]'
        if EVERYTHING in self.hosts:
            return f"[prepare] hosts names exact host:port pairs, and {EVERYTHING!r} is none"
        return None


class LanguageModelConfig(Section):
    """How the scorer asks a language model (evaluation/box/language_model.py).

    `text` is held-out data: bytes, or token numbers in two or four bytes; `token_bytes` an .npy file with each
    token's length in bytes. `mode` is `step` (no request holds a token that was not yet predicted) or `window`
    (whole windows of `context` tokens at once). `probes` histories are asked again; `tolerance` is how far, in
    nats, an answer may then differ. `sealed` is a second text that only an audit scores.
    """

    text: RepositoryPath
    encoding: Literal["bytes", "uint16", "uint32"] = "bytes"
    vocabulary: Annotated[StrictInt, Field(ge=2, le=4_000_000)] = 256
    token_bytes: RepositoryPath | None = None
    context: Annotated[StrictInt, Field(ge=1, le=1_048_576)] = 64
    mode: Literal["step", "window"] = "step"
    streams: Annotated[StrictInt, Field(ge=1, le=65_536)] = 512
    probes: Annotated[StrictInt, Field(ge=16, le=100_000)] = 500
    tolerance: Annotated[Finite, Field(gt=0, le=1)] = 0.02
    sealed: RepositoryPath | None = None


class PredictionsConfig(Section):
    """How a file of predictions is scored: `accuracy`, `rmse`, or `FILE.py:FUNCTION` of the base commit."""

    file: RepositoryPath
    targets: RepositoryPath
    score: Annotated[str, Field(pattern=r"^(accuracy|rmse|[A-Za-z0-9_./-]+\.py:[A-Za-z_][A-Za-z0-9_]*)$")] = "accuracy"


class EvaluateConfig(Section):
    """How the artifacts are measured, apart from the code that made them.

    Without an `interface`, `command` is trusted code of the base commit in a container of its own. With
    `lm`, `serve` is the command of the model box, which answers for the candidate, and a scorer of ours asks
    it; with `predictions` a scorer of ours reads a file. `gpus` is how many devices the command, or the model
    box, gets; no scorer has any.
    """

    command: Command | None = None
    artifacts: Annotated[tuple[RepositoryPath, ...], Field(min_length=1)]
    data: tuple[RepositoryPath, ...] = ()
    timeout: Seconds = 300.0
    gpus: Annotated[StrictInt, Field(ge=0, le=64)] = 0
    interface: Literal["lm", "predictions"] | None = None
    serve: Command | None = None
    lm: LanguageModelConfig | None = None
    predictions: PredictionsConfig | None = None

    def problem(self) -> str | None:
        """What is missing or too much for the interface, or None."""
        needed = {None: ("command",), "lm": ("serve", "lm"), "predictions": ("predictions",)}[self.interface]
        for name in ("command", "serve", "lm", "predictions"):
            if (getattr(self, name) is not None) != (name in needed):
                kind = "no interface" if self.interface is None else f"interface = {self.interface!r}"
                return f"[evaluate] with {kind} {'needs' if name in needed else 'takes no'} {name!r}"
        if self.interface == "predictions" and self.gpus:
            return "[evaluate] with interface = 'predictions' takes no 'gpus': a scorer of ours alone runs, without any"
        hidden = [self.lm.text, self.lm.sealed] if self.lm else [self.predictions.targets] if self.predictions else []
        for path in hidden:
            if path is not None and not any(path == root or path.startswith(f"{root}/") for root in self.data):
                return f"[evaluate] data does not hold {path!r}, so training could see it"
        return None


class LimitsConfig(Section):
    """Limits that the project asks for; absent ones come from the policy."""

    cpus: Annotated[Finite, Field(gt=0)] | None = None
    memory: Bytes | None = None
    pids: StrictInt | None = None
    disk: Bytes | None = None
    inodes: StrictInt | None = None
    tmp: Bytes | None = None
    shm: Bytes | None = None
    output: Bytes | None = None
    vram: Bytes | None = None


class DecisionConfig(Section):
    """How a result is judged (docs/decisions.md).

    `confirm` and `quick` test a promising result on pairs of fresh-seed runs; `greedy` keeps any
    improvement, `min-delta` one of at least `min_delta`, on one run. `min_delta` is the least gain worth
    keeping under every rule but `greedy`; `prefer_simpler` lets fewer lines win at an equal metric.
    """

    rule: Literal["confirm", "quick", "greedy", "min-delta"] = "confirm"
    min_delta: Annotated[Finite, Field(ge=0)] = 0.0
    prefer_simpler: bool = False


class MeasurementConfig(Section):
    """Bounds beyond which a run counts as disturbed (`invalid`: kept, never decided on); absent ones do not bind.

    `foreign_cpu` is the mean number of cores that other programs keep busy; pressures are shares of the
    time; `pin` gives each training sandbox whole processor cores of its own while enough are free;
    `repeat` is how often a disturbed run is measured again.
    """

    pin: bool = True
    repeat: Annotated[StrictInt, Field(ge=0, le=10)] = 2
    foreign_cpu: Annotated[Finite, Field(ge=0)] | None = None
    swapped_pages: Annotated[StrictInt, Field(ge=0)] | None = None
    throttle_events: Annotated[StrictInt, Field(ge=0)] | None = None
    cpu_pressure: Annotated[Finite, Field(ge=0, le=1)] | None = None
    memory_pressure: Annotated[Finite, Field(ge=0, le=1)] | None = None


class CacheConfig(Section):
    """A cache of this machine (`arsandbox cache list`) that the stages see read-only, in `[caches.NAME]`.

    `sha256` refuses every other version. Without `stages` training alone sees a dataset, and every stage a tokenizer
    or kernels. Compiled kinds (inductor, triton) are for training alone: no evaluation runs what a candidate compiled.
    """

    kind: Kind
    stages: tuple[CacheStage, ...] = ()
    target: Directory | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    def seen_by(self) -> tuple[str, ...]:
        """The stages that see it."""
        everyone = get_args(CacheStage) if self.kind in ("tokenizer", "kernels") else ("train",)
        return self.stages or everyone

    def problem(self, name: str) -> str | None:
        """What cannot work, or None."""
        if self.kind in COMPILED and self.target is not None:
            return f"[caches.{name}] target: a compiled kind lies in the workspace"
        if self.kind in COMPILED and set(self.stages) - {"train"}:
            return f"[caches.{name}] stages: a compiled kind is for training alone"
        return None


class ProjectConfig(Section):
    """Everything a project says about how its experiments run."""

    image: str = "cpu"
    engine: EngineName = DEFAULT_ENGINE
    budget: Seconds = 300.0
    grace: Seconds | None = None
    startup: Annotated[Seconds, Field(gt=0)] | None = None
    command: Command = ("python", "train.py")
    editable: Annotated[tuple[Pattern, ...], Field(min_length=1)] = ("train.py",)
    protected: tuple[Pattern, ...] = ()
    metric: MetricConfig = MetricConfig()
    prepare: PrepareConfig | None = None
    evaluate: EvaluateConfig | None = None
    environment: dict[EnvironmentName, Text] = Field(default_factory=dict)
    limits: LimitsConfig = LimitsConfig()
    decision: DecisionConfig = DecisionConfig()
    measurement: MeasurementConfig = MeasurementConfig()
    mounts: tuple[Directory, ...] = ()
    caches: dict[CacheName, CacheConfig] = Field(default_factory=dict)
    gpus: Gpus | None = None
    policy: PolicyFile | None = None

    def check(self, where: str) -> ProjectConfig:
        """Refuse combinations that cannot work, as UsageError naming `where`; returns self."""
        if self.metric.source == "evaluate" and self.evaluate is None:
            raise UsageError(
                f"{where}: metric.source is 'evaluate' but there is no [evaluate] section",
                hint='add [evaluate] with a command and artifacts, or set source = "stdout"',
            )
        if self.metric.source != "evaluate" and self.evaluate is not None:
            raise UsageError(
                f"{where}: there is an [evaluate] section but metric.source is {self.metric.source!r}",
                hint='set source = "evaluate" in [metric]',
            )
        if self.metric.source == "file" and self.metric.file is None:
            raise UsageError(f"{where}: metric.source is 'file' but there is no metric.file")
        if self.metric.file is not None and self.metric.source in ("evaluate", "stdout"):
            raise UsageError(
                f"{where}: metric.file is not read with source = {self.metric.source!r}",
                hint='set source = "file", "pytest" or "coverage"',
            )
        if self.metric.tests is not None and self.metric.source != "coverage":
            raise UsageError(f"{where}: metric.tests is the junit report beside source = 'coverage' alone")
        if self.startup is not None and self.prepare is None:
            raise UsageError(
                f"{where}: startup is set, but there is no [prepare] section whose data could wait for READY",
                hint="docs/integrity.md, The data tap",
            )
        for name, cache in self.caches.items():
            if (wrong := cache.problem(name)) is not None:
                raise UsageError(f"{where}: {wrong}", hint="docs/caches.md")
        problem = self.prepare.problem() if self.prepare is not None else None
        if problem is not None:
            raise UsageError(f"{where}: {problem}", hint='write them like hosts = ["index.example:443"]')
        problem = self.evaluate.problem() if self.evaluate is not None else None
        if problem is not None:
            raise UsageError(f"{where}: {problem}", hint="docs/evaluators.md shows a section for each interface")
        plausible = self.metric.plausible
        if plausible is not None and not plausible[0] < plausible[1]:
            raise UsageError(f"{where}: metric.plausible must be [low, high] with low < high")
        return self


def parse(text: str, where: str) -> ProjectConfig:
    """The config in the TOML `text`. Raises UsageError that names `where`, the key, and the nearest key."""
    return from_table(_toml(text, where), where)


def parse_pyproject(text: str, where: str) -> ProjectConfig | None:
    """The config in `[tool.arsandbox]` of a pyproject.toml, or None where it has none."""
    tool = _toml(text, where).get("tool", {})
    table = tool.get("arsandbox") if isinstance(tool, dict) else None
    return None if table is None else from_table(table, where)


def from_table(table: Any, where: str) -> ProjectConfig:
    """Validate a parsed table. Raises UsageError."""
    try:
        return ProjectConfig.model_validate(table).check(where)
    except ValidationError as error:
        raise _explain(error, where) from error


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: not valid TOML: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: holds a number that is too long, or values nested too deeply") from error


def _explain(error: ValidationError, where: str) -> UsageError:
    # A misspelt key often leaves the right one missing: the misspelling is what to say.
    first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    location = printable(".".join(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return UsageError(f"{where}: unknown key {location!r}", hint=hint)
    if first["type"] == "missing":
        return UsageError(f"{where}: {location!r} is missing")
    message = first["msg"].removeprefix("Value error, ")
    return UsageError(f"{where}: {location} = {shown(first['input'])}: {message}")


def shown(value: object) -> str:
    """`value` in a message: its repr, shortened; some numbers are too long and some values too deep for one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "(too long to show)"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "metric": MetricConfig,
        "prepare": PrepareConfig,
        "evaluate": EvaluateConfig,
        "lm": LanguageModelConfig,
        "predictions": PredictionsConfig,
        "limits": LimitsConfig,
        "decision": DecisionConfig,
        "measurement": MeasurementConfig,
    }
    if location and location[0] == "caches":
        return list(CacheConfig.model_fields)
    if location and location[0] == "policy":
        tables: type[BaseModel] = Policy if "stage" in location else PolicyFile
        return list((Limits if location[-1] == "limits" else tables).model_fields)
    model = sections.get(str(location[-1]), ProjectConfig) if location else ProjectConfig
    return list(model.model_fields)
