"""The fake engine: scripted ends under the spec's limits, faults at any call, a whole experiment without a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from arsandbox.policies.model import MIB, Limits
from arsandbox.sandbox.engines.fake import Call, FakeEngine, Fault, Script, ScriptFile, open_engine, scripted
from arsandbox.sandbox.engines.port import Engine, SandboxSpec
from arsandbox.sandbox.engines.registry import names
from arsandbox.sandbox.engines.registry import open_engine as opened
from arsandbox.sandbox.errors import MachineError, UsageError
from arsandbox.sandbox.models import ImageRef, Reason, Stage, Termination
from arsandbox_fixtures.places import ROOT

LIMITS = Limits(memory_bytes=64 * MIB, pids=8, disk_bytes=MIB, output_bytes=1024)


class Watching:
    def __init__(self) -> None:
        self.text, self.ticks = b"", 0

    def output(self, chunk: bytes) -> None:
        self.text += chunk

    def tick(self, elapsed_s: float, memory_bytes: int) -> None:
        self.ticks += 1


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., SandboxSpec]:
    def make(stage: Stage = Stage.TRAIN, **changes: Any) -> SandboxSpec:
        place = tmp_path / f"sandbox-{len(list(tmp_path.iterdir()))}"
        for name in ("layer", "scratch", "target"):
            (place / name).mkdir(parents=True)
        (place / "layer" / "train.py").write_text("old")
        (place / "layer" / "gone.txt").write_text("old")
        values: dict[str, Any] = {
            "experiment": "20240102-030405-678-abcdef",
            "stage": stage,
            "image": ImageRef(name="cpu", digest="sha256:" + "0" * 64),
            "command": ("python", "train.py"),
            "environment": {},
            "layers": (place / "layer",),
            "limits": LIMITS,
            "deadline_s": 10.0,
            "scratch": place / "scratch",
            "labels": {"arsandbox.experiment": "one"},
        }
        return SandboxSpec(**{**values, **changes})

    return make


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (Script(output=b"METRIC loss=1\n"), Reason.COMPLETED),
        (Script(exit_code=3), Reason.CRASH),
        (Script(seconds=11), Reason.TIMEOUT),
        (Script(memory_bytes=65 * MIB), Reason.OOM),
        (Script(pids=9), Reason.PIDS),
        (Script(files={"big": bytes(2 * MIB)}), Reason.DISK),
        (Script(output=bytes(2000)), Reason.OUTPUT),
        (
            Script(termination=Termination(reason=Reason.INTERRUPTED, exit_code=None, signal=2, detail="so it says")),
            Reason.INTERRUPTED,
        ),
    ],
)
def test_a_script_ends_as_the_limits_have_it(ask: Callable[..., SandboxSpec], script: Script, reason: Reason) -> None:
    engine: Engine = FakeEngine(lambda _: script)
    watching = Watching()
    with engine.sandbox(ask()) as sandbox:
        outcome = sandbox.run(watching)
    assert outcome.termination.reason is reason
    assert watching.text == script.output[:1024] and watching.ticks == 2
    assert outcome.wall_s <= 10 and outcome.usage.peak_memory_bytes <= 64 * MIB


def test_the_change_set_and_what_is_collected_are_read_from_a_real_upper_layer(ask: Callable[..., SandboxSpec]) -> None:
    spec = ask()
    script = Script(files={"train.py": b"new", "out/model": b"weights"}, deleted=("gone.txt",))
    with FakeEngine(lambda _: script).sandbox(spec) as sandbox:
        sandbox.run(Watching())
        changed = {one.path: one.change for one in sandbox.changes().paths}
        collected = sandbox.collect(["out"], spec.scratch.parent / "target", most_bytes=100, most_files=10)
    assert changed == {"train.py": "modified", "out": "added", "out/model": "added", "gone.txt": "deleted"}
    assert list(collected.files) == ["out/model"]
    assert (spec.scratch.parent / "target" / "out" / "model").read_bytes() == b"weights"
    assert not (spec.scratch / "upper").exists()


def test_scripts_are_told_by_stage_and_in_order(ask: Callable[..., SandboxSpec]) -> None:
    engine = FakeEngine(scripted({Stage.TRAIN: [Script(output=b"1"), Script(output=b"2")]}))
    seen = []
    for stage in (Stage.TRAIN, Stage.EVALUATE, Stage.TRAIN, Stage.TRAIN):
        watching = Watching()
        with engine.sandbox(ask(stage)) as sandbox:
            sandbox.run(watching)
        seen.append(watching.text)
    assert seen == [b"1", b"", b"2", b"2"]
    assert [spec.stage for spec in engine.specs] == [Stage.TRAIN, Stage.EVALUATE, Stage.TRAIN, Stage.TRAIN]


def _every_call(engine: FakeEngine, spec: SandboxSpec) -> None:
    engine.info(), engine.labelled("x"), engine.sweep({}), engine.has_image(""), engine.load_image([b""])
    engine.find_image("cpu")
    with engine.sandbox(spec) as sandbox:
        sandbox.run(Watching())
        sandbox.changes()
        sandbox.collect((), spec.scratch.parent / "target", most_bytes=0, most_files=0)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", get_args(Call))
def test_any_call_can_be_made_to_fail(ask: Callable[..., SandboxSpec], call: Call, moment: Any) -> None:
    engine = FakeEngine(faults=[Fault(call=call, moment=moment)])
    with pytest.raises(MachineError, match="a scripted fault"):
        _every_call(engine, ask())
    _every_call(engine, ask())  # the second of its kind works
    assert engine.calls[call] == 2


def test_what_a_failed_exit_leaves_is_found_and_swept(ask: Callable[..., SandboxSpec]) -> None:
    engine = FakeEngine(faults=[Fault(call="exit", kind="interrupt")])
    spec = ask()
    with pytest.raises(KeyboardInterrupt), engine.sandbox(spec):
        pass
    assert engine.labelled("arsandbox.experiment") == {"one"}
    assert engine.sweep({"arsandbox.experiment": "two"}) == []
    assert len(engine.sweep({"arsandbox.experiment": "one"})) == 1
    assert engine.labelled("arsandbox.experiment") == set() and not (spec.scratch / "upper").exists()


def test_the_entry_point_reads_its_script_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., SandboxSpec]
) -> None:
    assert "fake" in names()
    assert opened("fake").info().isolation == "none"
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"isolation": "container", "stages": {"train": [{"output": "hello", "exit_code": 2}]}}))
    monkeypatch.setenv("ARSANDBOX_FAKE_SCRIPT", str(path))
    engine = opened("fake")
    watching = Watching()
    with engine.sandbox(ask()) as sandbox:
        assert sandbox.run(watching).termination.exit_code == 2
    assert (watching.text, engine.info().isolation) == (b"hello", "container")
    path.write_text('{"stages": {"train": [{"sleep": 3}]}}')
    with pytest.raises(UsageError, match="sleep"):
        open_engine()


def test_a_kill_is_a_kill(tmp_path: Path) -> None:
    program = """
from arsandbox.sandbox.engines.fake import FakeEngine, Fault
FakeEngine(faults=[Fault(call="info", kind="kill")]).info()
print("still here")
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=False, env=dict(os.environ))
    assert (done.returncode, done.stdout) == (-9, b"")


CONFIG = """
image = "cpu"
budget = "20s"
command = ["python", "train.py"]
editable = ["train.py"]

[metric]
name = "loss"
goal = "min"
source = "stdout"

[decision]
rule = "greedy"
"""


def _experiment(repository: Any, engine: FakeEngine) -> Any:
    from arsandbox.sandbox import experiment
    from arsandbox.sandbox.events import Silent
    from arsandbox.sandbox.settings import Options

    request = experiment.Request(repository.path, Options(accept_self_reported=True, tag="t"))
    return experiment.run(experiment.plan(request, find_image=engine.find_image), engine, Silent())


def test_a_whole_experiment_with_promotion_runs_without_a_process(make_repo: Callable[..., Any]) -> None:
    repository = make_repo({"arsandbox.toml": CONFIG, "train.py": "print(1)\n"})
    engine = FakeEngine(
        scripted({Stage.TRAIN: [Script(output=b"METRIC loss=2.0\n"), Script(output=b"METRIC loss=1.0\n")]}),
        isolation="container",
    )
    assert _experiment(repository, engine).verdict.value == "baseline"
    (repository.path / "train.py").write_text("print(2)\n")
    record = _experiment(repository, engine)
    assert (record.verdict.value, record.metric.value, record.engine.name) == ("keep", 1.0, "fake")
    assert repository.git("show", f"{record.promotion.commit}:train.py") == "print(2)"
    assert engine.labelled("arsandbox.experiment") == set()


def test_a_policy_refuses_an_engine_that_isolates_nothing(make_repo: Callable[..., Any]) -> None:
    """Nobody may promote by `--engine fake` what never ran."""
    with pytest.raises(MachineError, match="offers 'none'"):
        _experiment(make_repo({"arsandbox.toml": CONFIG, "train.py": "print(1)\n"}), FakeEngine())


def test_the_script_in_the_documentation_is_one() -> None:
    text = (ROOT / "docs" / "engines.md").read_text()
    block = text.partition("```json\n")[2].partition("```")[0]
    told = ScriptFile.model_validate_json(block)
    assert told.isolation == "container" and set(told.stages) == {Stage.TRAIN, Stage.EVALUATE} and len(told.faults) == 1
