"""Run one stage: its sandbox, its log and what it printed."""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from arsandbox.policies.model import Limits
from arsandbox.sandbox import state
from arsandbox.sandbox.egress import inside
from arsandbox.sandbox.egress.destinations import Allowlist
from arsandbox.sandbox.egress.proxy import Proxy
from arsandbox.sandbox.engines.port import Engine, EnoughError, Outcome, ReadOnlyMount, Sandbox, SandboxSpec
from arsandbox.sandbox.errors import StateError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.gpu.grant import Grant
from arsandbox.sandbox.metrics import MetricReader, Metrics
from arsandbox.sandbox.models import ImageRef, Reason, Stage, utc_now
from arsandbox.sandbox.record import StageRecord

# What process 1 says at the end (engines/init.py).
_OUTLIVED = re.compile(rb"^arsandbox: processes that outlived the command: (\d{1,6})$", re.MULTILINE)


@dataclass(frozen=True)
class StagePlan:
    """What one stage runs. `log` is the file that its output goes to; `metric` is shown while it runs.

    `egress` is what the stage may reach (`Allowlist.of` its policy); None is no network at all. `gpus` are leased.
    """

    stage: Stage
    image: ImageRef
    command: Sequence[str]
    environment: Mapping[str, str]
    layers: Sequence[Path]
    limits: Limits
    limit_s: float
    log: Path
    metric: str = ""
    cores: str = ""
    memory_nodes: str = ""
    mounts: tuple[ReadOnlyMount, ...] = ()
    egress: Allowlist | None = None
    gpus: Grant | None = None


@dataclass(frozen=True)
class StageRun:
    """A stage that ended, with its sandbox still there to be read.

    `began`: its command's start, monotonic clock; `outlived`: how many processes the command left running, by
    the word of process 1.
    """

    record: StageRecord
    outcome: Outcome
    metrics: Metrics
    sandbox: Sandbox
    setup_s: float
    began: float
    outlived: int


class _Watcher:
    """Keeps the log, reads metrics and passes progress on."""

    def __init__(self, plan: StagePlan, listener: Listener, end: threading.Event | None) -> None:
        self._plan, self._listener, self._end = plan, listener, end
        self._log = plan.log.open("wb")
        self._digest = hashlib.sha256()
        self._outlived = 0
        self.reader = MetricReader()
        self.problem: OSError | None = None

    def output(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        if b"processes that outlived the command" in chunk:  # an engine hands on whole lines
            self._outlived = max(self._outlived, *map(int, _OUTLIVED.findall(chunk)), 0)
        self.reader.feed(chunk)
        try:
            self._log.write(chunk)
        except OSError as error:
            self.problem = error  # a full disk: said when the stage has ended

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        if self._end is not None and self._end.is_set():
            raise EnoughError
        if self._plan.gpus is not None and self._plan.gpus.over is not None:
            raise EnoughError
        latest = self.reader.latest(self._plan.metric)
        self._listener.progress(self._plan.stage, elapsed_s, self._plan.limit_s, memory_bytes, latest)

    def outlived(self) -> int:
        """How many processes the command left, by whoever said most: one that says so itself accuses nobody else.

        The word of process 1 is not always the last: a line that the command began on its other stream, and never
        ended, is handed on behind it.
        """
        forwarder = 1 if self._plan.egress is not None else 0
        return max(0, self._outlived - forwarder)

    def drop(self) -> None:
        """Close the log of a stage that did not come to its end; nothing where it was closed."""
        self._log.close()

    def close(self) -> str:
        try:
            self._log.close()
        except OSError as error:
            self.problem = error
        if self.problem is not None:
            raise StateError(
                f"cannot write the log {self._plan.log}: {self.problem.strerror}",
                hint="free some space and run again",
            )
        return self._digest.hexdigest()


@contextmanager
def run_stage(
    engine: Engine,
    plan: StagePlan,
    *,
    experiment: str,
    scratch: Path,
    labels: Mapping[str, str],
    listener: Listener,
    end: threading.Event | None = None,
    go: Callable[[], None] = lambda: None,
) -> Iterator[StageRun]:
    """Run `plan` in a fresh sandbox and yield while its workspace can still be read; then all is removed.

    `go` is called when the sandbox is made, and may wait: the command starts when it returns.
    Soon after `end` is set it is ended; its reason is then `interrupted`. Raises MachineError when the engine
    fails, StateError when the log cannot be written.
    """
    directory = state.make_private(scratch / plan.stage.value)
    began = time.monotonic()
    watcher = _Watcher(plan, listener, end)
    try:
        with ExitStack() as stack:
            stack.callback(watcher.drop)
            proxy = stack.enter_context(Proxy(directory / "egress", plan.egress)) if plan.egress else None
            if proxy is not None:
                inside.certificates(proxy.directory)
            spec = _specification(plan, experiment, directory, labels, proxy)
            sandbox = stack.enter_context(engine.sandbox(spec))
            created = time.monotonic()
            go()
            listener.stage_started(plan.stage, plan.limit_s)
            started_at, started = utc_now(), time.monotonic()
            try:
                with plan.gpus.sampled() if plan.gpus is not None else nullcontext():
                    outcome = sandbox.run(watcher)
            finally:
                listener.stage_ended(plan.stage)
            if plan.gpus is not None:
                outcome = _with_gpus(outcome, plan.gpus)
            if proxy is not None:
                proxy.stop()
            record = StageRecord(
                stage=plan.stage,
                termination=outcome.termination,
                usage=outcome.usage,
                started_at=started_at,
                wall_s=round(outcome.wall_s, 3),
                log_sha256=watcher.close(),
                log_truncated=outcome.usage.output_bytes > plan.limits.output_bytes,
                egress=proxy.report() if proxy is not None else None,
            )
            setup = created - began + outcome.start_s
            metrics, command_began = watcher.reader.close(), started + outcome.start_s
            yield StageRun(record, outcome, metrics, sandbox, setup, command_began, watcher.outlived())
    finally:
        if directory.exists():
            shutil.rmtree(directory, ignore_errors=True)


def _specification(
    plan: StagePlan, experiment: str, scratch: Path, labels: Mapping[str, str], proxy: Proxy | None
) -> SandboxSpec:
    """What the engine is asked for; with a proxy, its socket's directory and the forwarder before the command."""
    command, environment, mounts = tuple(plan.command), dict(plan.environment), plan.mounts
    if proxy is not None and plan.egress is not None:
        command = inside.command(command)
        environment = {**environment, **inside.environment(plan.egress)}
        mounts = (*mounts, ReadOnlyMount(source=proxy.directory, target=inside.DIRECTORY))
    return SandboxSpec(
        experiment=experiment,
        stage=plan.stage,
        image=plan.image,
        command=command,
        environment=environment,
        layers=tuple(plan.layers),
        limits=plan.limits,
        deadline_s=plan.limit_s,
        cores=plan.cores,
        memory_nodes=plan.memory_nodes,
        gpus=plan.gpus.uuids if plan.gpus is not None else (),
        mounts=mounts,
        scratch=scratch,
        labels={**labels, **(plan.gpus.labels if plan.gpus is not None else {})},
    )


def _with_gpus(outcome: Outcome, gpus: Grant) -> Outcome:
    """With what was seen of its GPUs; where it was ended for that, with the reason."""
    ended = outcome.termination
    if gpus.over is not None and ended.reason is Reason.INTERRUPTED:
        ended = ended.model_copy(update={"reason": Reason.VRAM, "detail": gpus.over})
    usage = outcome.usage.model_copy(update={"gpu": gpus.usage().model_dump(mode="json")})
    return outcome.model_copy(update={"usage": usage, "termination": ended})


def last_line(log: Path) -> str:
    """The last line of a stage's log as one printable line; empty where there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 2000))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return state.printable(lines[-1])[:300] if lines else ""
