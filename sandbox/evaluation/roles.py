"""The three-role evaluation (trust L3, with the audit L4): model box and scorer, two sandboxes at once.

The model box holds the candidate's code and its artifact, and no held-out data; it gets inputs and gives
log-probabilities. The scorer holds the targets and only trusted code. Each has a socket of its own, and the
controller hands frames from one to the other; the result comes from the scorer's alone.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from arsandbox.sandbox import state
from arsandbox.sandbox.bench import Bench, Measurement, determinism
from arsandbox.sandbox.candidate import Candidate
from arsandbox.sandbox.config import EvaluateConfig
from arsandbox.sandbox.engines.port import ReadOnlyMount
from arsandbox.sandbox.errors import ArsandboxError, StateError
from arsandbox.sandbox.evaluation.channel import SOCKET_NAME, ChannelError, Endpoint, exchange
from arsandbox.sandbox.evaluation.mounts import LIBRARY, TARGET, furnish, python_path
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.gpu.grant import Grant
from arsandbox.sandbox.models import Finding, Model, Reason, Stage, Termination
from arsandbox.sandbox.record import StageRecord
from arsandbox.sandbox.run_directory import RunDirectory
from arsandbox.sandbox.stage import StagePlan, last_line, run_stage

_ARTIFACTS = "/run/arsandbox-artifacts"
_SCORER = f"import sys; sys.path.insert(0, '{LIBRARY}'); from arsandbox_box.score import main; main()"
# Seconds for both sandboxes to start and for a model box to leave by itself when all is said.
_START_S, _LEAVE_S = 60.0, 2.0
# Findings of the scorer that say that the number is not what it claims to be.
_DECEIT = ("stateful", "not_causal", "not_normalised")


class ScorerResult(Model):
    """What the scorer says at the end (box/session.py, `Result`)."""

    metrics: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    count: int
    probes: int
    audited: bool
    findings: tuple[Finding, ...]


def evaluate_in_roles(
    bench: Bench, candidate: Candidate, artifacts: Path, gpus: Grant | None, *, run: RunDirectory, into: Measurement
) -> None:
    """Evaluate the files in `artifacts` of `candidate`; sets value, trust, findings or problem.

    `gpus` are for the model boxes, which follow one another; the scorer never has any.
    """
    began = time.monotonic()
    plan_of = bench.settings.project.evaluate
    assert plan_of is not None  # noqa: S101 - the caller has looked
    with _channels(run) as place:
        _Evaluation(bench, candidate, artifacts, gpus, run, into, place, plan_of).run()
    into.evaluate_s += time.monotonic() - began


class _Box:
    """One model box, run by a thread of its own."""

    def __init__(self, evaluation: _Evaluation, number: int) -> None:
        self._evaluation, self._number = evaluation, number
        self._end = threading.Event()
        self.endpoint = Endpoint(evaluation.place / f"model-{number}", "model")
        furnish(self.endpoint.directory)
        self.record: StageRecord | None = None
        self.problem: BaseException | None = None
        self.words = ""
        self._thread = threading.Thread(target=self._run, name="model-box")
        self._thread.start()

    def alive(self) -> bool:
        """Whether its sandbox may still connect."""
        return self._thread.is_alive()

    def end(self) -> StageRecord:
        """Let it leave, end it where it does not, and say how it ended. Raises what the engine raised."""
        self.endpoint.hang_up()
        self._thread.join(_LEAVE_S)
        self._end.set()
        self._thread.join()
        self.endpoint.close()
        if self.problem is not None:
            raise self.problem
        assert self.record is not None  # noqa: S101 - without a problem there is one
        return self.record

    def _run(self) -> None:
        here = self._evaluation
        plan = here.plan(
            Stage.MODEL, here.config.serve, here.model_layers, self.endpoint.directory, f"model-{self._number}.log"
        )
        labels = here.run_directory.labels(here.bench.longest_s)
        scratch = state.make_private(here.run_directory.scratch / f"model-{self._number}")
        try:
            with run_stage(
                here.bench.engine, plan, experiment=here.run_directory.id, scratch=scratch, labels=labels,
                listener=Silent(), end=self._end,
            ) as stage:  # fmt: skip
                self.record = _left(stage.record)
        except (ArsandboxError, OSError) as error:
            self.problem = error
        self.words = last_line(plan.log)


def _left(record: StageRecord) -> StageRecord:
    """How a model box ended; one that we ended did nothing wrong by that."""
    if record.termination.reason is not Reason.INTERRUPTED:
        return record
    detail = "it stayed after the last answer and was ended"
    return record.model_copy(update={"termination": record.termination.model_copy(update={"detail": detail})})


class _Evaluation:
    def __init__(
        self,
        bench: Bench,
        candidate: Candidate,
        artifacts: Path,
        gpus: Grant | None,
        run: RunDirectory,
        into: Measurement,
        place: Path,
        config: EvaluateConfig,
    ) -> None:
        self.bench, self.config, self.place, self.run_directory = bench, config, place, run
        self._artifacts, self._gpus, self._into = artifacts, gpus, into
        layers, heldout, base = bench.layers, bench.settings.heldout, candidate.base
        own = layers.layers(candidate.commit, without=heldout).paths
        trusted = (*layers.only(base, heldout).paths, *layers.layers(base, without=heldout).paths)
        if bench.data is not None:
            own = (*own, bench.data.visible)
            trusted = (*trusted, bench.data.heldout, bench.data.visible)
        self.model_layers, self._scorer_layers = (*own, artifacts), trusted
        self._boxes: list[_Box] = []
        self._result: bytes | None = None
        self._failure: ChannelError | None = None
        self._problem: BaseException | None = None

    def run(self) -> None:
        """Both sandboxes, the exchange between them, and what came of it."""
        scorer = Endpoint(self.place / "scorer", "scorer")
        furnish(scorer.directory, self._task())
        over = threading.Event()
        relay = threading.Thread(target=self._relay, args=(scorer, over), name="evaluation-channel")
        command = ("python3", "-I", "-c", _SCORER)
        plan = self.plan(Stage.SCORE, command, self._scorer_layers, scorer.directory, "evaluate.log")
        labels = self.run_directory.labels(self.bench.longest_s)
        relay.start()
        try:
            with run_stage(
                self.bench.engine, plan, experiment=self.run_directory.id, scratch=self.run_directory.scratch,
                labels=labels, listener=self.bench.listener,
            ) as stage:  # fmt: skip
                self._into.stages.append(stage.record)
                ended = stage.outcome.termination
        finally:
            over.set()
            scorer.hang_up()
            relay.join()
            scorer.close()
            self._end_boxes()
        if self._problem is not None:
            raise self._problem
        self._conclude(ended, plan.log)

    def plan(self, stage: Stage, command: Any, layers: tuple[Path, ...], directory: Path, log: str) -> StagePlan:
        """The plan of one of the two sandboxes."""
        settings = self.bench.settings
        mounts = [ReadOnlyMount(source=directory, target=TARGET), *settings.mounts_for(stage)]
        if stage is Stage.SCORE and self.config.interface == "predictions":
            mounts.append(ReadOnlyMount(source=self._artifacts, target=_ARTIFACTS))
        own = {"ARSANDBOX_CHANNEL": f"{TARGET}/{SOCKET_NAME}", "ARSANDBOX_TASK": f"{TARGET}/task.json"}
        if stage is Stage.MODEL:
            own["PYTHONPATH"] = python_path(settings.project.environment)
        return StagePlan(
            stage=stage,
            image=self.bench.image,
            command=command,
            environment={**determinism(0), **settings.environment_for(stage), **own},
            layers=layers,
            limits=settings.policy_for(stage).limits,
            limit_s=self.config.timeout,
            log=self.run_directory.keep / log,
            mounts=tuple(mounts),
            gpus=self._gpus if stage is Stage.MODEL else None,
        )

    def _task(self) -> dict[str, Any]:
        metric = self.bench.settings.project.metric.name
        if self.config.interface == "predictions":
            assert self.config.predictions is not None  # noqa: S101 - checked by the config
            fields = self.config.predictions.model_dump(mode="json")
            memory = self.bench.settings.policy_for(Stage.SCORE).limits.memory_bytes
            return {
                "interface": "predictions", "metric": metric, "artifacts": _ARTIFACTS, "memory_bytes": memory, **fields,
            }  # fmt: skip
        assert self.config.lm is not None  # noqa: S101 - checked by the config
        return {
            "interface": "lm", "metric": metric, **self.config.lm.model_dump(mode="json"),
            "sealed": self.config.lm.sealed if self.bench.sealed else None,
            "seed": secrets.randbits(63), "audit": self.bench.audit,
        }  # fmt: skip

    def _relay(self, scorer: Endpoint, over: threading.Event) -> None:
        until = time.monotonic() + _START_S + self.config.timeout
        try:
            model = None
            if self.config.interface == "lm":
                self._boxes.append(_Box(self, 1))
            scorer.accept(until, lambda: not over.is_set())
            if self._boxes:
                model = self._connected(self._boxes[-1], until, over)
            self._result = exchange(
                scorer, model, until=until, answer_s=self.config.timeout, fresh=lambda: self._fresh(until, over)
            )
        except ChannelError as error:
            self._failure = error
        except (ArsandboxError, OSError) as error:
            self._problem = error
        finally:
            scorer.hang_up()

    def _fresh(self, until: float, over: threading.Event) -> Endpoint:
        self._into.stages.append(self._boxes[-1].end())
        self._boxes.append(_Box(self, len(self._boxes) + 1))
        return self._connected(self._boxes[-1], until, over)

    def _connected(self, box: _Box, until: float, over: threading.Event) -> Endpoint:
        box.endpoint.accept(until, lambda: box.alive() and not over.is_set())
        return box.endpoint

    def _end_boxes(self) -> None:
        """The last box ends here; those before it ended when they were replaced."""
        if self._boxes:
            self._into.stages.append(self._boxes[-1].end())

    def _conclude(self, ended: Termination, log: Path) -> None:
        into = self._into
        if self.config.interface == "predictions" and ended.reason is Reason.OOM:
            # Whatever is scored beside it is the base commit's, which had room enough at the baseline.
            into.problem = f"the scorer ran out of memory on {self._predictions()}: {ended.detail}"
            into.remark("bad_artifact", into.problem)
            return
        ends = [box.record.termination for box in self._boxes if box.record is not None]
        over = next((one for one in ends if one.reason is Reason.VRAM), None)
        if over is not None:  # also where the box had answered everything by then
            into.problem = f"the model box ended with vram: {over.detail}"
            return
        if self._failure is not None:
            into.problem = self._why(self._failure, ended, log)
            if self._failure.end == "model":
                into.remark("malformed_answer", into.problem)
            return
        if self._result is None or ended.reason is not Reason.COMPLETED:
            into.problem = f"the scorer ended with {ended.reason.value}: {last_line(log) or ended.detail}"
            return
        try:
            result = ScorerResult.model_validate_json(self._result)
        except ValidationError as error:
            raise StateError("the scorer's result is not one: this is a fault of arsandbox") from error
        for finding in result.findings:
            into.remark(finding.code, state.printable(finding.detail)[:500])
        into.metrics = dict(result.metrics)
        into.trust = "L4" if result.audited else "L3"
        deceit = next((f for f in into.findings if f.code in _DECEIT), None)
        if deceit is not None:
            into.tampered = f"evaluation: {deceit.detail}"
        elif result.findings:
            into.problem = f"evaluation: {into.findings[-1].detail}"
        else:
            into.value = result.metrics.get(self.bench.settings.project.metric.name)

    def _predictions(self) -> str:
        """The file of predictions, with its size."""
        assert self.config.predictions is not None  # noqa: S101 - checked by the config
        file = self.config.predictions.file
        place = self._artifacts / file
        return f"{file} of {place.stat().st_size} bytes" if place.is_file() else file

    def _why(self, failure: ChannelError, ended: Termination, log: Path) -> str:
        if failure.end == "model" and self._boxes:
            box = self._boxes[-1]
            how = box.record.termination if box.record is not None else None
            words = box.words or (how.detail if how is not None else "")
            return f"the model box: {failure.detail}{f' ({words})' if words else ''}"
        if failure.end == "time":
            return f"the evaluation took longer than its {self.config.timeout:g} s: {failure.detail}"
        return f"the scorer ended with {ended.reason.value}: {last_line(log) or failure.detail}"


@contextmanager
def _channels(run: RunDirectory) -> Iterator[Path]:
    """A directory for the sockets of one evaluation, gone with the run's scratch at the latest."""
    place = run.scratch / f"channels-{secrets.token_hex(4)}"
    place.mkdir()
    place.chmod(0o755)
    yield place
