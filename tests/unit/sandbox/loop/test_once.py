"""`run --propose` on the fake engine: one proposal, run and judged once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arsandbox.sandbox import confirmation
from arsandbox.sandbox.engines.fake import FakeEngine, Fault, Script
from arsandbox.sandbox.engines.port import SandboxSpec
from arsandbox.sandbox.errors import Interrupted, MachineError, UsageError
from arsandbox.sandbox.loop.once import Errand, propose_and_run
from arsandbox.sandbox.models import Stage, Verdict
from arsandbox.sandbox.planning import Plan, Request, default_tag
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.settings import Options
from arsandbox_fixtures.fake_loop import FakeLoop, play, train

MakeLoop = Callable[..., FakeLoop]


def run_once(made: FakeLoop, engine: FakeEngine | None = None) -> tuple[Plan, Record, FakeEngine]:
    engine = engine or made.engine()
    request = Request(made.made.path, Options(tag=made.tag, accept_self_reported=True))
    errand = Errand(request, made.propose or f"patches:{made.queue}")
    return *propose_and_run(errand, engine, engine.find_image, made.listener), engine


def test_each_call_runs_what_was_not_tried_yet_on_the_champion_of_now(fake_loop: MakeLoop) -> None:
    made = fake_loop()
    made.offer({"1": train(9.0), "2": train(extra=-2.0), "3": train(middle="print()")})
    records = [run_once(made)[1] for _ in range(3)]
    assert [record.verdict for record in records] == [Verdict.KEEP, Verdict.KEEP, Verdict.DISCARD]
    assert [record.metric.value for record in records] == [9.0, 7.0, 7.0]  # each on top of the winners before it
    assert [record.round.proposer for record in records if record.round] == ["patches"] * 3
    with pytest.raises(UsageError, match="nothing is proposed"):
        run_once(made)
    made.check(over=True)


def test_a_promising_one_is_pending_and_confirmed_by_its_plan(fake_loop: MakeLoop) -> None:
    made = fake_loop(rule="confirm", noise=0.1)
    made.offer({"1": train(5.0)})
    plan, record, engine = run_once(made)
    assert record.verdict is Verdict.PENDING and record.promotion is None
    record = confirmation.confirm(plan, record, engine, made.listener)
    assert record.verdict is Verdict.KEEP and record.promotion is not None
    made.check(over=True)


def test_two_processes_do_not_confirm_the_same_experiment(fake_loop: MakeLoop) -> None:
    made = fake_loop(rule="confirm", noise=0.1)
    made.offer({"1": train(5.0)})
    plan, pending, engine = run_once(made)
    other: list[BaseException | Record] = []

    def meanwhile(number: int) -> None:
        if not other:
            other.append(UsageError("not asked yet"))
            try:
                other[0] = confirmation.confirm(plan, pending, made.engine(), made.listener, recovering=False)
            except UsageError as error:
                other[0] = error

    made.running = meanwhile
    record = confirmation.confirm(plan, pending, made.engine(), made.listener, recovering=False)
    assert record.verdict is Verdict.KEEP
    assert "is being confirmed by another process" in str(other[0])
    again = confirmation.confirm(plan, pending, engine, made.listener)
    assert again.id == record.id  # once it is over, whoever asks gets that end
    assert list((plan.repository.state / "confirming").iterdir()) == []


def test_ctrl_c_while_an_edit_is_proposed_says_so_and_leaves_nothing(fake_loop: MakeLoop) -> None:
    made = fake_loop()
    made.propose = "command:agent"
    with pytest.raises(Interrupted, match="while an edit was proposed"):
        run_once(made, made.engine([Fault(call="run", kind="interrupt")]))
    assert made.records() == []
    made.check(over=True)


def test_an_engine_that_is_too_weak_is_refused_before_an_agent_works(
    fake_loop: MakeLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, worked = tmp_path / "owner.toml", tmp_path / "worked"
    owner.write_text('isolation = "gvisor"\n')
    monkeypatch.setenv("ARSANDBOX_POLICY", str(owner))
    made = fake_loop()
    engine = made.engine()
    errand = Errand(Request(made.made.path, Options(tag=made.tag)), f"touch {worked}", trusted=True)
    with pytest.raises(MachineError, match="isolation 'gvisor'"):
        propose_and_run(errand, engine, engine.find_image, made.listener)
    assert not worked.exists()


def test_a_proposal_that_takes_until_the_next_day_goes_to_the_branch_it_was_made_for(
    fake_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake_loop()
    monkeypatch.setenv("TZ", "EARLY+12")
    time.tzset()
    today = default_tag()

    def run(spec: SandboxSpec) -> Script:
        if spec.stage is not Stage.PROPOSE:
            return play(0.0)(spec)
        os.environ["TZ"] = "LATE-14"  # 26 hours on: another day, whatever the hour
        time.tzset()
        return Script(files={"train.py": train(8.0).encode()})

    engine = FakeEngine(run, isolation="container")
    request = Request(made.made.path, Options(accept_self_reported=True))
    try:
        _, record = propose_and_run(Errand(request, "command:agent"), engine, engine.find_image, made.listener)
        assert default_tag() != today and record.branch == f"arsandbox/{today}", record
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("script", "verdict", "reason"),
    [
        (Script(output=b"no model answers\n", exit_code=7), Verdict.CRASH, "no model answers"),
        (Script(), Verdict.REJECTED, "changed nothing"),
        (Script(files={"evaluate.py": b"print(0)\n"}), Verdict.REJECTED, "changed nothing that is editable"),
        (Script(files={"train.py": train(8.0).encode()}), Verdict.KEEP, ""),
    ],
)
def test_a_command_in_its_sandbox(script: Script, verdict: Verdict, reason: str, fake_loop: MakeLoop) -> None:
    made = fake_loop()
    made.propose = "command:agent"
    trained = play(0.0)

    def run(spec: SandboxSpec) -> Script:
        return script if spec.stage is Stage.PROPOSE else trained(spec)

    _, record, _ = run_once(made, FakeEngine(run, isolation="container"))
    assert record.verdict is verdict and reason in record.reason, record.reason
    assert record.round is not None and record.round.proposer == "command" and record.round.stage is not None
    made.check(over=True)
