"""`gpus` of [evaluate] on the fake engine: who may ask, what the evaluation gets, and what comes of it.

The real nvidia-ml-py asks a stand-in driver (arsandbox_fixtures/nvidia.py). The model box's are in test_roles.py.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arsandbox.sandbox import experiment
from arsandbox.sandbox.config import parse
from arsandbox.sandbox.engines.fake import FakeEngine, Fault, Script
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.errors import MachineError, RefusedError, UsageError
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.gpu import nvml
from arsandbox.sandbox.gpu.leases import LABEL, Lease
from arsandbox.sandbox.gpu.request import GpuRequest
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.loop.bounds import Bounds
from arsandbox.sandbox.models import Stage
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.rerun import rerun
from arsandbox.sandbox.settings import Options, Settings, resolve
from arsandbox_fixtures.fake_loop import train
from arsandbox_fixtures.nvidia import GIB, UUIDS, Driver, Gpu

A, B, C = UUIDS
COMMAND = '[metric]\nsource = "evaluate"\n[evaluate]\ncommand = ["python", "evaluate.py"]\nartifacts = ["out/"]\n'
HELD = 'artifacts = ["out/"]\ndata = ["heldout/"]\n'
LM = (
    '[metric]\nsource = "evaluate"\n[evaluate]\ninterface = "lm"\nserve = ["python", "serve.py"]\n'
    f'{HELD}[evaluate.lm]\ntext = "heldout/text"\n'
)
PREDICTIONS = (
    f'[metric]\nsource = "evaluate"\n[evaluate]\ninterface = "predictions"\n{HELD}'
    '[evaluate.predictions]\nfile = "out/p.csv"\ntargets = "heldout/text"\n'
)
TASK = 'budget = "20s"\n[decision]\nrule = "greedy"\n[measurement]\npin = false\n' + COMMAND.replace(
    "[metric]\n", '[metric]\nname = "loss"\n'
)


def with_gpus(text: str, number: object) -> str:
    return text.replace("[evaluate]\n", f"[evaluate]\ngpus = {number}\n")


def settled(text: str, **options: Any) -> Settings:
    return resolve(parse(text, "x"), Options(limits={"cpus": 1.0}, **options))


# --- who may ask ---


@pytest.mark.parametrize("value", ["true", '"1"', "1.0", "-1", "65", '["GPU-1"]'])
def test_it_is_a_number_of_devices(value: str) -> None:
    with pytest.raises(UsageError, match=r"evaluate\.gpus"):
        parse(with_gpus(COMMAND, value), "x")


def test_predictions_have_nothing_that_runs_on_one() -> None:
    with pytest.raises(UsageError, match="interface = 'predictions' takes no 'gpus'"):
        parse(with_gpus(PREDICTIONS, 1), "x")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (COMMAND, "af9eaa51392e325075ea1b17ecafc8403c91cfe5e2982c28ce0ced9b0b6fe1ed"),
        (LM, "beed4be5e41ff406f65a6c024cafab83381ce62e15fc73ac24b678f2ccb15974"),
        (PREDICTIONS, "0dfa7a1cc6b4f1b07f866ba82ef44d47f3dc393adb97e26c5fc7a032edcaf95e"),
    ],
)
def test_without_any_a_setup_has_the_digest_that_it_had_before_there_was_the_key(text: str, known: str) -> None:
    """Recorded values stay comparable. The digests were computed by the version before."""

    def digest(config: str) -> str:
        return settled(config).digest(image="i", fixed_tree="t", data="d")

    assert digest(text) == digest(with_gpus(text, 0)) == known
    if text != PREDICTIONS:
        assert len({known, digest(with_gpus(text, 1)), digest(with_gpus(text, 2)), digest("gpus = 1\n" + text)}) == 4


@pytest.mark.parametrize(("text", "stage"), [(COMMAND, "evaluate"), (LM, "model")])
def test_the_policy_of_that_stage_caps_them(
    text: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settled(with_gpus(text, 2))
    assert (found.evaluation_gpus.number, found.gpus.number, found.needed_gpus.number) == (2, 0, 2)
    assert {name: held.policy.gpus for name, held in found.policies.items() if held.policy.gpus} == {stage: 2}
    assert found.policies[stage].sources["gpus"] == "[evaluate] gpus of the project"
    with pytest.raises(RefusedError, match=rf"{stage} stage: .* asks for 2, but --policy gpu allows only 1"):
        settled(with_gpus(text, 2), policy="gpu")
    owner = tmp_path / "owner.toml"
    monkeypatch.setenv("ARSANDBOX_POLICY", str(owner))
    for policy in ("gpus = 1", f"[stage.{stage}]\ngpus = 1"):
        owner.write_text(policy)
        with pytest.raises(RefusedError) as refused:
            settled(with_gpus(text, 2))
        assert refused.value.message == (
            f"{stage} stage: policy field gpus: [evaluate] gpus of the project asks for 2, "
            f"but ARSANDBOX_POLICY ({owner}) allows only 1"
        )
        assert settled(with_gpus(text, 1)).evaluation_gpus.number == 1
    owner.write_text("[stage.score]\ngpus = 0\n[stage.train]\ngpus = 0")
    assert settled(with_gpus(text, 2)).evaluation_gpus.number == 2


def test_the_option_and_the_evaluation_ask_together() -> None:
    text = with_gpus(COMMAND, 1)
    assert settled(text, gpus=f"{B},{A}").evaluation_gpus.uuids == (A,)
    assert settled(with_gpus(COMMAND, 2), gpus=f"{B},{A}").evaluation_gpus.uuids == (A, B)
    assert settled(f"gpus = ['{B}']\n{text}").evaluation_gpus.uuids == (B,)
    assert settled(text, gpus="3").evaluation_gpus == settled(f"gpus = 'none'\n{text}").evaluation_gpus
    for none in ("none", "0"):
        assert settled(COMMAND, gpus=none).needed_gpus.number == 0
        with pytest.raises(UsageError, match=rf"--gpus {none}: the evaluation asks for 1 \(\[evaluate\] gpus\)"):
            settled(text, gpus=none)
    with pytest.raises(UsageError, match=r"\[evaluate\] gpus = 2, but only 1 are named"):
        settled(with_gpus(COMMAND, 2), gpus=A)


# --- what it gets ---


class Stages:
    """A play whose training leaves the loss of its train.py, which the evaluation reads; `during` is called in each."""

    def __init__(self, during: Callable[[SandboxSpec], None] = lambda spec: None, *, noise: float = 0.0) -> None:
        self._during, self._noise = during, noise

    def __call__(self, spec: SandboxSpec) -> Script:
        self._during(spec)
        if spec.stage is Stage.TRAIN:
            text = next(file.read_text() for layer in spec.layers if (file := layer / "train.py").exists())
            words = dict(line.split(" = ") for line in text.splitlines() if " = " in line)
            luck = random.Random(int(spec.environment["ARSANDBOX_SEED"])).gauss(0, 1) * self._noise
            return Script(files={"out/loss": str(float(words["ANSWER"]) + float(words["EXTRA"]) + luck).encode()})
        loss = next(file.read_text() for layer in spec.layers if (file := layer / "out/loss").exists())
        return Script(output=f"METRIC loss={loss}\n".encode())


def task(make_repo: Callable[..., Any], config: str) -> Any:
    return make_repo({"arsandbox.toml": config, "train.py": train(), "evaluate.py": ""})


def run(repository: Any, engine: FakeEngine, **options: Any) -> Record:
    request = experiment.Request(repository.path, Options(tag="t", **options))
    found: Record = experiment.run(experiment.plan(request, find_image=engine.find_image), engine, Silent())
    return found


def engine_of(play: Any = None, faults: tuple[Fault, ...] = ()) -> FakeEngine:
    return FakeEngine(play or Stages(), faults, isolation="container")


def take(*uuids: str) -> Lease:
    with nvml.session() as session:
        return Lease.take(GpuRequest(uuids=uuids), session, tuple)


def test_the_evaluation_has_a_grant_of_its_own_and_the_record_of_that_stage_says_so(
    driver: Driver, make_repo: Callable[..., Any]
) -> None:
    taken = []

    def during(spec: SandboxSpec) -> None:
        if spec.stage is Stage.EVALUATE:
            with pytest.raises(MachineError, match=f"{A}: another run has leased it"):
                take(A)
            taken.append(spec.gpus)
            driver.tell(Gpu(A, used=GIB // 2 + 3 * GIB), Gpu(B))
            driver.seen(A)
            driver.tell(Gpu(A), Gpu(B))

    engine = engine_of(Stages(during))
    record = run(task(make_repo, with_gpus(TASK, 1)), engine)
    assert (record.verdict.value, record.trust, record.findings, record.usage.gpu) == ("baseline", "L2", (), {})
    assert taken == [(A,)]
    trained, evaluated = engine.specs
    assert (trained.gpus, LABEL in trained.labels) == ((), False)
    assert (evaluated.gpus, evaluated.labels[LABEL]) == ((A,), A)
    (used,) = record.stages[1].usage.gpu["devices"]
    assert (used["uuid"], used["peak_memory_bytes"]) == (A, 3 * GIB) and record.stages[0].usage.gpu == {}
    take(A, B).release()


def test_training_and_evaluation_lease_one_after_the_other(driver: Driver, make_repo: Callable[..., Any]) -> None:
    repository = task(make_repo, "gpus = 1\n" + with_gpus(TASK, 2))
    engine = engine_of()
    record = run(repository, engine)
    assert [(spec.stage.value, spec.gpus) for spec in engine.specs] == [("train", (A,)), ("evaluate", (A, B))]
    assert [len(stage.usage.gpu["devices"]) for stage in record.stages] == [1, 2]
    engine = engine_of()
    run(make_repo({"arsandbox.toml": with_gpus(TASK, 1), "train.py": train()}, name="named"), engine, gpus=B)
    assert [spec.gpus for spec in engine.specs] == [(B,), (B,)]


def test_devices_are_given_back_whatever_becomes_of_the_evaluation(
    driver: Driver, make_repo: Callable[..., Any]
) -> None:
    repository = task(make_repo, "gpus = 1\n" + with_gpus(TASK, 1))
    engine = engine_of(lambda spec: Stages()(spec) if spec.stage is Stage.TRAIN else Script(exit_code=1))
    assert run(repository, engine).verdict.value == "no_metric"
    take(A, B).release()
    with pytest.raises(MachineError, match="scripted fault"):
        run(repository, engine_of(faults=(Fault(call="run", nth=2),)))
    take(A, B).release()


def test_what_this_machine_never_has_is_refused_before_anything_trains(
    driver: Driver, make_repo: Callable[..., Any]
) -> None:
    repository = task(make_repo, "gpus = 1\n" + with_gpus(TASK, 3))
    engine = engine_of()
    with pytest.raises(MachineError, match="3 GPUs are asked for, but this machine has 2") as refused:
        run(repository, engine)
    assert refused.value.hint == "[evaluate] gpus = 2" and engine.specs == []
    driver.tell(*map(Gpu, UUIDS))
    base = run(repository, engine)
    driver.tell(Gpu(A), Gpu(B))
    place = Repository.open(repository.path)
    (place.state / "experiments" / base.id / "artifacts").rename(place.state / "elsewhere")
    asked = len(engine.specs)
    with pytest.raises(MachineError, match="this machine has 2"):
        rerun(place, base, engine, Silent(), mode="exact")
    assert len(engine.specs) == asked


def test_more_memory_than_its_own_ceiling_ends_the_evaluation(driver: Driver, make_repo: Callable[..., Any]) -> None:
    def during(spec: SandboxSpec) -> None:
        driver.tell(Gpu(A, used=GIB // 2 + 3 * GIB), Gpu(B))  # in both stages; the ceiling is the evaluation's
        driver.seen(A)
        driver.tell(Gpu(A), Gpu(B))

    ceiling = '[policy.stage.evaluate.limits]\nvram_bytes = "2g"\n'
    record = run(task(make_repo, "gpus = 1\n" + with_gpus(TASK, 1) + ceiling), engine_of(Stages(during)))
    assert record.verdict.value == "no_metric" and record.metric.value is None
    assert record.reason == (
        f"the evaluation ended with vram: used 3.0 GiB of GPU memory on {A}; the policy's ceiling is 2.0 GiB"
    )
    assert [stage.termination.reason.value for stage in record.stages] == ["completed", "vram"]


@pytest.mark.parametrize(("told", "code"), [((Gpu(A, pid=os.getpid()), Gpu(B)), "gpu_shared"), ((Gpu(B),), "gpu_lost")])
@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.EVALUATE])
def test_a_device_that_was_shared_or_lost_disturbs_the_run(
    stage: Stage, told: tuple[Gpu, ...], code: str, driver: Driver, make_repo: Callable[..., Any]
) -> None:
    disturbed = []

    def during(spec: SandboxSpec) -> None:
        if spec.stage is stage and not disturbed:
            disturbed.append(spec.experiment)
            driver.tell(*told)
            driver.seen(A, times=1)  # a lost device is read once
            driver.tell(Gpu(A), Gpu(B))

    engine = engine_of(Stages(during))
    repository = task(make_repo, "gpus = 1\n" + with_gpus(TASK, 1))
    record = run(repository, engine)
    assert (record.verdict.value, record.findings) == ("baseline", ())  # measured again
    with Ledger.open(Repository.open(repository.path).state) as ledger:
        first = ledger.get(disturbed[0])
    assert (first.verdict.value, [found.code for found in first.findings]) == ("invalid", [code])
    # On a device that was spoilt while it trained nothing more is measured.
    stages = ["train", "train", "evaluate"] if stage is Stage.TRAIN else ["train", "evaluate"] * 2
    assert [spec.stage.value for spec in engine.specs] == stages


def test_a_rerun_evaluates_on_a_device_and_again_where_it_was_shared(
    driver: Driver, make_repo: Callable[..., Any]
) -> None:
    made = task(make_repo, with_gpus(TASK, 1))
    base = run(made, engine_of())
    assert "asked_gpus" not in base.policy.effective
    times = []

    def during(spec: SandboxSpec) -> None:
        times.append(spec.gpus)
        if len(times) == 1:
            driver.tell(Gpu(A, pid=os.getpid()), Gpu(B))
            driver.seen(A)
            driver.tell(Gpu(A), Gpu(B))

    engine = engine_of(Stages(during))
    again = rerun(Repository.open(made.path), base, engine, Silent(), mode="exact")
    assert (again.verdict.value, [grade.value for grade in again.rerun.reached]) == ("agrees", ["R0", "R1"])
    # R0 twice, since somebody else computed there; then R1.
    assert times == [(A,), (A,), (), (A,)] and not any(fact.fact == "setup" for fact in again.rerun.differences)


# --- a loop ---


def evaluated_on_a_gpu(made: Any, before: str = "") -> None:
    config = (made.made.path / "arsandbox.toml").read_text().replace('source = "stdout"', 'source = "evaluate"')
    section = COMMAND[COMMAND.index("[evaluate]") :]
    made.made.write({"arsandbox.toml": before + config + with_gpus(section, 1), "evaluate.py": ""})
    made.made.commit("evaluated on a GPU")


def test_a_loop_with_one_device_trains_evaluates_and_confirms_on_it_in_turns(
    driver: Driver, fake_loop: Callable[..., Any]
) -> None:
    driver.tell(Gpu(A))
    # Processors enough that the next training may begin while the one before is still evaluated.
    made = fake_loop(rule="quick", config="[measurement]\npin = false\n[limits]\ncpus = 0.25\n")
    evaluated_on_a_gpu(made, "gpus = 1\n")
    made.offer({"1": train(8.0), "2": train(extra=1.0), "3": train(extra=2.0)})
    lock, running, together = threading.Lock(), [], []

    def during(spec: SandboxSpec) -> None:
        with lock:
            running.append(spec.stage.value)
            together.append(len(running))
        time.sleep(0.03)
        with lock:
            running.remove(spec.stage.value)

    engine = engine_of(Stages(during, noise=0.05))
    assert len(made.rounds(engine=engine)) == 3
    ends = made.ends()
    assert [ends[name].verdict.value for name in "123"] == ["keep", "discard", "discard"]
    assert ends["1"].confirms is not None and ends["1"].promotion is not None
    assert max(together) == 1 and {spec.gpus for spec in engine.specs} == {(A,)}
    assert [spec.stage.value for spec in engine.specs] == ["train", "evaluate"] * (len(engine.specs) // 2)
    made.check(over=True)


def test_a_bound_on_gpu_time_holds_where_the_evaluation_alone_has_some(
    driver: Driver, fake_loop: Callable[..., Any]
) -> None:
    made = fake_loop()
    evaluated_on_a_gpu(made)
    made.offer({str(number): train(extra=float(number)) for number in range(1, 6)})

    def play(spec: SandboxSpec) -> Script:
        return Stages()(spec).model_copy(update={"seconds": 10.0})  # no time passes

    records = made.rounds(engine=engine_of(play), bounds=Bounds(gpu_seconds=15.0))
    assert len(records) in (2, 3)  # one may have begun meanwhile
