"""What a record ran under binds whatever follows it: confirming, promoting by hand, running again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from arsandbox.sandbox import confirmation, experiment, hand_promotion, rebuild
from arsandbox.sandbox.engines.fake import FakeEngine
from arsandbox.sandbox.errors import MachineError, RefusedError
from arsandbox.sandbox.loop.bounds import Bounds
from arsandbox.sandbox.models import Stage, Verdict
from arsandbox.sandbox.planning import Request, plan, plan_of
from arsandbox.sandbox.record import Record
from arsandbox.sandbox.repository import Repository
from arsandbox.sandbox.rerun import rerun
from arsandbox.sandbox.settings import Options
from arsandbox_fixtures.fake_loop import FakeLoop, play, train
from arsandbox_fixtures.loops import MakeLoop

DEMANDS = 'isolation = "container"\nself_reported = "never"\nenvironment = ["A*"]\n'


@pytest.fixture
def demanding(tmp_path: Path) -> str:
    path = tmp_path / "demands.toml"
    path.write_text(DEMANDS)
    return str(path)


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`owner(text)`: the machine owner's policy from now on."""

    def write(text: str) -> None:
        path = tmp_path / "owner.toml"
        path.write_text(text)
        monkeypatch.setenv("ARSANDBOX_POLICY", str(path))

    return write


def better(made: FakeLoop, policy: str | None = None, *, promote: bool = True) -> Record:
    (made.made.path / "train.py").write_text(train(5.0))
    options = Options(tag=made.tag, accept_self_reported=True, policy=policy, promote=promote)
    engine = made.engine()
    return experiment.run(plan(Request(made.made.path, options), find_image=engine.find_image), engine, made.listener)


def test_a_pending_experiment_is_confirmed_under_its_own_policy(fake_loop: MakeLoop, demanding: str) -> None:
    made = fake_loop(rule="confirm", noise=0.1)
    pending = better(made, demanding)
    assert pending.verdict is Verdict.PENDING
    what = plan_of(Repository.open(made.made.path), pending, Options(accept_self_reported=True))  # `arsandbox confirm`
    with pytest.raises(MachineError, match="isolation 'container'"):
        confirmation.confirm(what, pending, FakeEngine(play(0.1), isolation="namespaces"), made.listener)
    record = confirmation.confirm(what, pending, made.engine(), made.listener)
    assert (record.verdict, record.promotion) == (Verdict.KEEP, None)
    assert "self_reported = 'never'" in record.reason
    assert record.policy == pending.policy


def test_a_winner_is_promoted_by_hand_under_its_own_policy(fake_loop: MakeLoop, demanding: str) -> None:
    made = fake_loop()
    winner = better(made, demanding)
    assert (winner.verdict, winner.promotion) == (Verdict.KEEP, None)
    with pytest.raises(RefusedError, match="self_reported = 'never'"):
        hand_promotion.promote(Repository.open(made.made.path), winner, accept_self_reported=True)


def test_what_the_owner_demands_since_then_holds_for_what_was_recorded_before(
    fake_loop: MakeLoop, owner: Callable[[str], None]
) -> None:
    made = fake_loop()
    winner, repository = better(made, promote=False), Repository.open(made.made.path)
    weak = FakeEngine(play(0.0), isolation="namespaces")
    assert rerun(repository, winner, weak, made.listener, mode="exact").rerun is not None
    owner('isolation = "container"\n')
    with pytest.raises(MachineError, match="isolation 'container'"):
        rerun(repository, winner, weak, made.listener, mode="exact")
    assert rerun(repository, winner, made.engine(), made.listener, mode="exact").rerun is not None


def test_no_sandbox_of_a_loop_is_weaker_than_the_policy_demands(
    fake_loop: MakeLoop, owner: Callable[[str], None]
) -> None:
    """Neither the champion's first measurement, nor its calibration, nor the proposer's own."""
    made = fake_loop(rule="confirm", noise=0.1)
    started: list[Stage] = []
    weak = FakeEngine(play(0.1, before=lambda spec: started.append(spec.stage)), isolation="namespaces")
    made.propose = "command:agent"
    owner('isolation = "container"\n')
    with pytest.raises(MachineError, match="isolation 'container'"):
        made.rounds(engine=weak, bounds=Bounds(count=1))
    assert started == []
    owner('[stage.propose]\nisolation = "container"\n')
    with pytest.raises(MachineError, match="isolation 'container'"):
        made.rounds(engine=weak, bounds=Bounds(count=1))
    assert started == []


def test_a_record_of_an_older_version_says_less_and_asks_for_no_more(fake_loop: MakeLoop) -> None:
    made = fake_loop()
    winner, repository = better(made, promote=False), Repository.open(made.made.path)
    kept = {"limits": winner.policy.effective["limits"], "retired": 1}
    old = winner.model_copy(update={"policy": winner.policy.model_copy(update={"effective": kept})})
    assert rebuild.settings_of(repository, old).policy == rebuild.settings_of(repository, winner).policy
