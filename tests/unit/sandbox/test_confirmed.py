"""What stands on a confirmation: its record has no run of its own, and its files are those of the pending run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arsandbox.cli.history import logs
from arsandbox.sandbox import confirmation, experiment
from arsandbox.sandbox.engines.fake import FakeEngine, Script
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.errors import UsageError
from arsandbox.sandbox.events import Silent
from arsandbox.sandbox.hand_promotion import promote
from arsandbox.sandbox.ledger import Ledger
from arsandbox.sandbox.models import Stage, Verdict
from arsandbox.sandbox.record import Grade, Record, Rerun
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.rerun import rerun
from arsandbox.sandbox.settings import Options

SUITE = """
command = ["python", "-m", "pytest"]
editable = ["train.py"]

[metric]
name = "pass_rate"
goal = "max"
source = "pytest"
file = "junit.xml"
"""
EVALUATED = """
editable = ["train.py"]

[metric]
name = "loss"
source = "evaluate"

[evaluate]
command = ["python", "evaluate.py"]
artifacts = ["out/"]
"""


def upper(spec: SandboxSpec, name: str) -> str:
    return next(file.read_text() for layer in spec.layers if (file := Path(layer) / name).exists())


def suite(spec: SandboxSpec) -> Script:
    """A test suite of two tests, which pass where train.py names them."""
    cases = "".join(
        f'<testcase classname="t" name="{name}">{"" if name in upper(spec, "train.py") else "<failure/>"}</testcase>'
        for name in ("one", "two")
    )
    return Script(files={"junit.xml": f"<testsuite>{cases}</testsuite>"})


def training(spec: SandboxSpec) -> Script:
    """Training leaves its number and its seed; the evaluation adds a little of the seed, as noise."""
    if spec.stage is Stage.TRAIN:
        number = re.findall(r"[\d.]+", upper(spec, "train.py"))[0]
        noise = int(spec.environment["ARSANDBOX_SEED"]) / 2**31 / 10  # another one for every seed
        return Script(output=b"trained\n", files={"out/model": f"{float(number) + noise}"})
    return Script(output=f"METRIC loss={upper(spec, 'out/model')}\n".encode())


class Task:
    """A repository, and runs of its working tree on the fake engine."""

    def __init__(self, made: Any, play: Callable[[SandboxSpec], Script]) -> None:
        self.made, self.engine = made, FakeEngine(play, isolation="container")

    def run(self, text: str | None = None) -> tuple[Any, Record]:
        if text is not None:
            self.made.write({"train.py": text})
        request = experiment.Request(self.made.path, Options(accept_self_reported=True, tag="t"))
        plan = experiment.plan(request, find_image=self.engine.find_image)
        return plan, experiment.run(plan, self.engine, Silent())

    def confirmed(self, text: str, listener: Silent | None = None) -> tuple[Record, Record]:
        plan, pending = self.run(text)
        assert pending.verdict is Verdict.PENDING
        return pending, confirmation.confirm(plan, pending, self.engine, listener or Silent())


def test_the_tests_of_a_confirmed_champion_are_known_to_the_next_run(make_repo: Callable[..., Any]) -> None:
    task = Task(make_repo({"arsandbox.toml": SUITE, "train.py": "zero\n"}), suite)
    task.run()
    _, done = task.confirmed("one\n")
    assert done.verdict is Verdict.KEEP and done.promotion is not None and done.tests is not None
    _, after = task.run("one and two\n")
    assert (after.verdict, after.metric.value) == (Verdict.KEEP, 1.0)
    assert after.tests is not None and after.tests.expected == 2


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_baseline_is_the_first_calibrating_run_and_the_others_are_counted_on(make_repo: Callable[..., Any]) -> None:
    made = make_repo({"arsandbox.toml": EVALUATED, "train.py": "9\n", "evaluate.py": "pass\n"})
    task, heard = Task(made, training), Heard()
    task.run()
    task.confirmed("5\n", heard)
    told = [note for note in heard.notes if "calibrating" in note]
    assert told == [f"calibrating the noise: run {number} of up to 8" for number in range(2, 9)]


@pytest.fixture
def trained(make_repo: Callable[..., Any]) -> tuple[Task, Record, Record]:
    made = make_repo({"arsandbox.toml": EVALUATED, "train.py": "9\n", "evaluate.py": "pass\n"})
    task = Task(made, training)
    task.run()
    return task, *task.confirmed("5\n")


def test_the_artifact_of_a_confirmed_winner_is_evaluated_again(
    trained: tuple[Task, Record, Record], capsys: pytest.CaptureFixture[str]
) -> None:
    task, pending, done = trained
    assert done.verdict is Verdict.KEEP and done.promotion is not None
    assert done.artifacts == pending.artifacts != {}
    assert done.metric.value != pending.metric.value  # the mean of other runs: not what the artifact is held against
    again = rerun(Repository.open(task.made.path), done, task.engine, Silent(), mode="exact")
    assert again.rerun is not None and again.rerun.reached == (Grade.R0, Grade.R1), again.reason
    logs(done.id, task.made.path)
    assert capsys.readouterr().out == "trained\n"


def test_the_same_code_is_told_what_became_of_it(trained: tuple[Task, Record, Record]) -> None:
    task, _, _ = trained
    task.made.git("checkout", "-q", "-f", "arsandbox/t")
    _, waiting = task.run("3\n")
    _, again = task.run("3\n")
    assert again.verdict is Verdict.DISCARD and f"arsandbox confirm {waiting.id}" in again.reason
    with pytest.raises(UsageError) as refused:
        promote(Repository.open(task.made.path), waiting, accept_self_reported=True)
    assert refused.value.hint == f"arsandbox confirm {waiting.id}"


def test_a_confirmation_does_not_promote_what_an_audit_refuted(make_repo: Callable[..., Any]) -> None:
    task = Task(make_repo({"arsandbox.toml": EVALUATED, "train.py": "9\n", "evaluate.py": "pass\n"}), training)
    task.run()
    plan, pending = task.run("5\n")
    audit = Rerun(of=pending.id, mode="exact", reached=(), recorded=5.0, quantity="value", seeds=())
    with Ledger.open(Repository.open(task.made.path).state) as ledger:
        refuting = pending.model_copy(update={"id": "20300101-000000-000-aaaaaa", "rerun": audit, "reason": "luck"})
        ledger.append(refuting.model_copy(update={"verdict": Verdict.QUARANTINE}))
    done = confirmation.confirm(plan, pending, task.engine, Silent())
    assert (done.verdict, done.promotion) == (Verdict.KEEP, None)
    assert "20300101-000000-000-aaaaaa ended as quarantine: luck" in done.reason


def test_what_is_promoted_by_hand_does_not_say_that_it_is_not_promoted(make_repo: Callable[..., Any]) -> None:
    task = Task(make_repo({"arsandbox.toml": EVALUATED, "train.py": "9\n", "evaluate.py": "pass\n"}), training)
    task.run()
    plan, pending = task.run("5\n")
    unpromoted = replace(plan, options=replace(plan.options, promote=False))
    kept = confirmation.confirm(unpromoted, pending, task.engine, Silent())
    assert kept.reason.endswith("; not promoted: --no-promote")
    done = promote(Repository.open(task.made.path), kept, accept_self_reported=False)
    assert done.promotion is not None and f"{done.reason}; not promoted: --no-promote" == kept.reason


def test_an_audit_that_is_refused_leaves_no_record(trained: tuple[Task, Record, Record]) -> None:
    task, _, done = trained
    repository = Repository.open(task.made.path)
    with pytest.raises(UsageError, match="no model that could be asked"):
        rerun(repository, done, task.engine, Silent(), mode="audit")
    with Ledger.open(repository.state) as ledger:
        assert [record.rerun for record in ledger.latest()] == [None] * len(ledger.latest())
        assert "rerun of" not in json.dumps([record.description for record in ledger.latest()])
