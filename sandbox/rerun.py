"""Reproduce a recorded experiment from its record alone, and say how far the result agrees.

Grades: R0 the stored artifact, evaluated again, gives the same value bit for bit. R1 a run with the
recorded seed gives the same artifact digests. R2 the recorded value (for a promotion: its difference
to the baseline) lies in the 99% prediction interval of fresh-seed runs. R3 the same on another host,
where only differences can be compared.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from arsandbox.sandbox import agreement, host, prepared, rebuild, reported, sealed, state
from arsandbox.sandbox.candidate import Candidate
from arsandbox.sandbox.engines.port import Engine
from arsandbox.sandbox.errors import ArsandboxError, Interrupted, MachineError, RefusedError, UsageError
from arsandbox.sandbox.events import Listener
from arsandbox.sandbox.experiment import require_image
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.measure import Bench, Measurement, determinism, evaluate, measure
from arsandbox.sandbox.models import ChangeSet, Reason, Usage, Verdict, utc_now
from arsandbox.sandbox.record import Difference, Grade, MetricInfo, Record, Rerun, Timing
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.requirements import require_policies
from arsandbox.sandbox.run_directory import RunDirectory, measured_in, run_directory
from arsandbox.sandbox.workspace.frozen import digests, require_equal
from arsandbox.sandbox.workspace.layers import LayerStore

Mode = Literal["auto", "exact", "statistical", "audit"]
# Facts that change what a value means; with another one of these only differences can be compared.
_HOST_FACTS = ("architecture", "cpu", "gpu")
LEAST_RUNS = 3


@dataclass
class _Seen:
    """What the rerun has come to so far."""

    reached: list[Grade] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    baseline_values: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    interval: tuple[float, float] | None = None
    artifacts_equal: bool | None = None
    words: list[str] = field(default_factory=list)
    last: Measurement | None = None


def rerun(
    repository: Repository, record: Record, engine: Engine, listener: Listener, *, mode: Mode = "auto", times: int = 5
) -> Record:
    """Rerun `record` and return the new ledger record, whose verdict is `agrees` or `disagrees`.

    `audit` evaluates the stored artifact again at L4, in fresh model boxes, with the sealed text. `auto`
    tries R0, then R1 with the recorded seed, then R2 with `times` fresh seeds, and stops at the first that
    holds. Raises UsageError (nothing to compare), RefusedError (something recorded was changed),
    MachineError (something is gone, or the comparison would be meaningless here).
    """
    if record.metric.value is None or record.rerun is not None:
        raise UsageError(f"experiment {record.id} has no measured value to compare with ({record.verdict.value})")
    if mode in ("auto", "statistical") and times < LEAST_RUNS:
        raise UsageError(f"--times {times}: at least {LEAST_RUNS} runs are needed for an interval")
    with Ledger.open(repository.state) as ledger, run_directory(repository.state) as place:
        return _Rerun(repository, record, engine, listener, ledger, place).run(mode, times)


class _Rerun:
    def __init__(
        self,
        repository: Repository,
        record: Record,
        engine: Engine,
        listener: Listener,
        ledger: Ledger,
        place: RunDirectory,
    ) -> None:
        self._repository, self._record, self._engine = repository, record, engine
        self._listener, self._ledger, self._place = listener, ledger, place
        # The one run that artifacts and their value are of: a confirmation's own value is the mean of several.
        self._behind = ledger.get(record.confirms) if record.confirms is not None else record
        self._seen = _Seen()
        self._runs = 0

    def run(self, mode: Mode, times: int) -> Record:
        """Rebuild, compare, write down."""
        self._settings = rebuild.settings_of(self._repository, self._record)
        self._candidate = rebuild.candidate_of(self._repository, self._record)
        if mode == "audit":
            self._require_model()
        self._bench = self._rebuilt_bench()
        self._differences = self._changed_facts()
        self._elsewhere = any(d.fact in _HOST_FACTS for d in self._differences)
        if self._elsewhere and (mode == "exact" or self._record.baseline is None):
            changed = next(d for d in self._differences if d.fact in _HOST_FACTS)
            raise MachineError(
                f"{changed.fact} was {changed.then!r} and is {changed.now!r}: values cannot be compared here",
                hint="rerun a record that has a baseline with --statistical: differences can be compared",
            )
        draft = self._draft()
        try:
            self._ledger.begin(draft)
            self._compare(mode, times)
        except KeyboardInterrupt as error:
            self._ledger.append(draft.model_copy(update={"reason": "interrupted by the user"}))
            raise Interrupted(f"rerun {self._place.id} was interrupted; its sandbox is gone") from error
        except ArsandboxError as error:
            self._ledger.append(draft.model_copy(update={"reason": state.printable(f"not finished: {error.message}")}))
            raise
        record = self._ledger.append(self._final(draft, mode))
        self._listener.finished(record)
        return record

    def _compare(self, mode: Mode, times: int) -> None:
        if mode == "audit":
            self._audit()
            return
        if not self._elsewhere:
            self._evaluate_again()
            if mode != "statistical":
                self._exact(decides=mode == "exact")
        wanted = Grade.R3 if self._elsewhere else Grade.R2
        if mode == "statistical" or (mode == "auto" and Grade.R1 not in self._seen.reached):
            self._statistical(times, wanted)

    def _evaluate_again(self) -> None:
        """R0, where the artifacts were kept."""
        kept = measured_in(self._repository.state, self._record) / "artifacts"
        if not kept.is_dir() or self._settings.project.evaluate is None:
            return
        require_equal(digests(kept), self._behind.artifacts, f"the stored artifact of {self._behind.id}")
        self._listener.note("R0: evaluating the stored artifact again")
        into = self._undisturbed(partial(evaluate, self._bench, self._candidate, kept))
        if into.value == self._behind.metric.value:
            self._seen.reached.append(Grade.R0)
            self._seen.words.append("R0: the stored artifact gives the same value")
        else:
            self._seen.failed.append(f"R0: the stored artifact now gives {into.value}: {into.problem or 'not equal'}")

    def _require_model(self) -> None:
        """Refuse an audit that has nobody to ask, before the ledger hears of it."""
        evaluated = self._settings.project.evaluate
        if evaluated is None or evaluated.interface != "lm":
            raise UsageError(
                f"experiment {self._record.id} has no model that could be asked",
                hint='an audit needs [evaluate] with interface = "lm": docs/integrity.md',
            )
        if not (measured_in(self._repository.state, self._record) / "artifacts").is_dir():
            raise MachineError(
                f"the artifacts of {self._record.id} are not kept: a baseline's, a winner's and a pending one's are",
                hint=f"arsandbox diff {self._record.id} > edit.patch; arsandbox run --audit --patch edit.patch",
            )

    def _audit(self) -> None:
        """R0 at L4; the sealed text is scored once for a candidate, whoever asks."""
        before = sealed.scored(self._ledger, self._record)
        self._bench = replace(self._bench, audit=True, sealed=before is None)
        self._evaluate_again()
        if before is not None:
            self._seen.words.append(f"the sealed text was scored before, by {before.id}, and not again")
        last = self._seen.last
        found = before.metrics if before is not None else last.metrics if last is not None else {}
        value = found.get(f"{self._record.metric.name}.sealed")
        if value is None or last is None:
            return
        words, over_fitted = sealed.compare(self._ledger, self._record, value)
        if words:
            self._seen.words.append(words)
        if over_fitted:
            last.remark("over_fitted", words)
            last.unknowable = words

    def _exact(self, *, decides: bool) -> None:
        """R1: the recorded seed must give the recorded artifacts; else, unless it decides, R2 comes next."""
        if not self._behind.artifacts:
            self._seen.words.append("R1 is not offered: the record has no artifacts")
            return
        self._listener.note("R1: running again with the recorded seed")
        again = self._measured(self._candidate, self._record.seed)
        equal = again.artifacts == self._behind.artifacts
        self._seen.artifacts_equal = equal
        if again.value is not None:
            self._seen.values.append(again.value)
        if equal and again.value == self._behind.metric.value:
            self._seen.reached.append(Grade.R1)
            self._seen.words.append("R1: the same seed gives the same artifacts, bit for bit")
            return
        # Self-test: can this task be exact here at all? Two runs of the same seed say so.
        twin = self._measured(self._candidate, self._record.seed)
        if twin.artifacts == again.artifacts:
            words = "R1: two runs of the recorded seed agree with each other, not with the record"
            (self._seen.failed if decides else self._seen.words).append(words)
        else:
            self._seen.words.append("R1 cannot be promised: two runs of the same seed differ from each other")

    def _statistical(self, times: int, grade: Grade) -> None:
        recorded, quantity = self._quantity()
        against = self._rebuilt_baseline() if quantity == "difference" else None
        self._seen.values.clear()
        for number in range(times):
            self._listener.note(f"{grade.value}: fresh-seed run {number + 1} of {times}")
            self._seen.values.append(self._value(self._measured(self._candidate, secrets.randbits(31))))
            if against is not None:
                self._seen.baseline_values.append(self._value(self._measured(against, secrets.randbits(31))))
        if against is None:
            low, high = agreement.prediction_interval(self._seen.values)
        else:
            low, high = agreement.difference_interval(self._seen.values, self._seen.baseline_values)
        self._seen.interval = (low, high)
        words = (
            f"the recorded {quantity} {recorded:.6g} lies {{}} {low:.6g} to {high:.6g}, as {times} fresh runs predict"
        )
        if agreement.within(recorded, low, high):
            self._seen.reached.append(grade)
            self._seen.words.append(f"{grade.value}: {words.format('within')}")
        else:
            self._seen.failed.append(f"{grade.value}: {words.format('outside')}")

    def _quantity(self) -> tuple[float, Literal["value", "difference"]]:
        value = self._record.metric.value
        assert value is not None  # noqa: S101 - refused at the start
        baseline = self._record.baseline
        if baseline is not None and (self._record.promotion is not None or self._elsewhere):
            return value - baseline.value, "difference"
        return value, "value"

    def _measured(self, candidate: Candidate, seed: int) -> Measurement:
        """One measurement from training on."""
        self._seen.seeds.append(seed)
        return self._undisturbed(partial(measure, self._bench, candidate, seed=seed))

    def _undisturbed(self, work: Callable[..., None]) -> Measurement:
        """What `work` measures; a disturbed measurement is made again as often as the project says."""
        for _ in range(self._settings.project.measurement.repeat + 1):
            into = Measurement()
            work(run=self._subdirectory(), into=into)
            self._seen.last = into
            if not into.disturbed:
                return into
        raise MachineError(f"the machine is too disturbed to compare: {into.disturbed[0]}", hint="try when it is idle")

    def _value(self, seen: Measurement) -> float:
        if seen.value is None:
            ended = seen.train.termination if seen.train else None
            why = seen.problem or (ended.detail if ended and ended.reason is not Reason.COMPLETED else "no metric")
            raise RefusedError(f"a rerun of {self._record.id} gave no value: {why}")
        return seen.value

    def _subdirectory(self) -> RunDirectory:
        self._runs += 1
        keep = state.make_private(self._place.keep / f"run-{self._runs}")
        scratch = state.make_private(self._place.scratch / f"run-{self._runs}")
        return RunDirectory(self._place.id, scratch, keep)

    def _rebuilt_baseline(self) -> Candidate:
        assert self._record.baseline is not None  # noqa: S101 - the quantity is a difference
        return rebuild.candidate_of(self._repository, self._ledger.get(self._record.baseline.experiment))

    def _rebuilt_bench(self) -> Bench:
        record = self._record
        require_policies(self._settings.used_policies, self._engine.info())
        require_image(self._engine, record.image)
        layers = LayerStore(self._repository.state / "layers", self._repository.objects)
        data = None
        if record.data_sha256 is not None:
            data = prepared.find(self._repository.state / "data", record.data_sha256)
        bench = Bench(
            self._engine, self._repository.objects, layers, self._settings, record.image, data, self._listener
        )
        if record.baseline is None:
            return bench
        against = self._ledger.get(record.baseline.experiment)
        kept = measured_in(self._repository.state, against)
        return replace(bench, expected_tests=reported.expected_tests(against, kept))

    def _changed_facts(self) -> tuple[Difference, ...]:
        then, now = self._record.environment, host.environment()
        engine = self._engine.info()
        was = self._record.engine
        facts = [(name, then.get(name, ""), now.get(name, "")) for name in sorted(then.keys() | now.keys())]
        if was is not None:
            facts += [
                ("engine", f"{was.name} {was.version}", f"{engine.name} {engine.version}"),
                ("runtime", was.runtime, engine.runtime),
            ]
        base = self._record.base_commit
        fixed, _ = prepared.fixed_tree(self._repository.objects, base, self._settings, self._repository.state / "fixed")
        data = self._bench.data.sha256 if self._bench.data else None
        setup = self._settings.digest(image=self._record.image.digest, fixed_tree=fixed, data=data)
        facts.append(("setup", self._record.setup_sha256[:16], setup[:16]))
        return tuple(Difference(fact=f, then=a, now=b) for f, a, b in facts if a != b and f != "load")

    def _draft(self) -> Record:
        now = utc_now()
        return self._record.model_copy(
            update={
                "schema_version": Record.model_fields["schema_version"].default,
                "id": self._place.id,
                "description": f"rerun of {self._record.id}",
                # It is no round of a loop, no confirming run and no confirmation: none of them counts it.
                "round": None,
                "part": None,
                "confirms": None,
                "engine": self._engine.info(),
                "metric": self._record.metric.model_copy(update={"value": None}),
                "metrics": {},
                "self_reported": {},
                "artifacts": {},
                "findings": (),
                "decision": None,
                "promotion": None,
                "stages": (),
                "usage": Usage(),
                "conditions": None,
                "timing": Timing(),
                "change_set": ChangeSet(),
                "exit_code": None,
                "signal": None,
                "verdict": Verdict.INTERRUPTED,
                "reason": "the controller ended before the rerun did",
                "started_at": now,
                "finished_at": now,
                "environment": host.environment(),
                "determinism": determinism(self._record.seed),
                "previous_hash": "",
                "ledger_hash": "",
            }
        )

    def _final(self, draft: Record, mode: Mode) -> Record:
        seen = self._seen
        recorded, quantity = self._quantity()
        last = seen.last or Measurement()
        good = bool(seen.reached) and not seen.failed
        verdict = Verdict.AGREES if good else Verdict.DISAGREES
        if mode == "exact" and Grade.R1 not in seen.reached:
            verdict = Verdict.DISAGREES
        if mode == "audit" and (last.tampered or last.unknowable):
            verdict = Verdict.TAMPERED if last.tampered else Verdict.QUARANTINE
        sentences = [*seen.failed, *seen.words] or ["nothing could be compared"]
        return draft.model_copy(
            update={
                "verdict": verdict,
                "reason": state.printable("; ".join(sentences)),
                "metric": MetricInfo(
                    name=draft.metric.name, goal=draft.metric.goal, value=last.value, source=draft.metric.source
                ),
                "metrics": last.metrics if mode == "audit" else {},
                "trust": (last.trust if mode == "audit" else None) or draft.trust,
                "findings": tuple(last.findings) if mode == "audit" else (),
                "artifacts": last.artifacts,
                "stages": tuple(last.stages),
                "conditions": last.conditions,
                "usage": last.train.usage if last.train else Usage(),
                "timing": Timing(
                    setup_s=round(last.setup_s, 4),
                    run_s=round(last.train.wall_s if last.train else 0.0, 4),
                    startup_s=round(last.startup_s, 4),
                    evaluate_s=round(last.evaluate_s, 4),
                    diff_s=round(last.diff_s, 4),
                    teardown_s=round(last.teardown_s, 4),
                ),
                "change_set": last.change_set,
                "exit_code": last.train.termination.exit_code if last.train else None,
                "signal": last.train.termination.signal if last.train else None,
                "finished_at": utc_now(),
                "rerun": Rerun(
                    of=self._record.id,
                    mode="statistical" if seen.interval is not None else "exact",
                    reached=tuple(seen.reached),
                    recorded=recorded,
                    quantity=quantity,
                    values=tuple(seen.values),
                    baseline_values=tuple(seen.baseline_values),
                    seeds=tuple(seen.seeds),
                    interval=seen.interval,
                    artifacts_equal=seen.artifacts_equal,
                    differences=self._differences,
                ),
            }
        )
