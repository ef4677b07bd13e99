import pytest

from arsandbox.policies.model import ISOLATION, Policy, Promise
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import EngineInfo, Guarantee, Guarantees
from arsandbox.sandbox.requirements import require_engine


def _engine(isolation: str = "namespaces", guarantees: Guarantees | None = None) -> EngineInfo:
    return EngineInfo(
        name="some", version="1", runtime="x", isolation=isolation, privilege="user", guarantees=guarantees
    )


def test_every_promise_can_be_demanded() -> None:
    assert set(Promise.__args__) == set(Guarantees.model_fields)


@pytest.mark.parametrize("asked", ISOLATION)
@pytest.mark.parametrize("offered", ISOLATION)
def test_isolation_is_met_by_the_same_or_a_stronger_one(asked: str, offered: str) -> None:
    policy = Policy.model_validate({"isolation": asked})
    if ISOLATION.index(offered) >= ISOLATION.index(asked):
        require_engine(policy, _engine(offered))
        return
    with pytest.raises(MachineError, match=f"asks for isolation '{asked}'.*offers '{offered}'"):
        require_engine(policy, _engine(offered))


def test_an_isolation_that_is_not_known_meets_nothing() -> None:
    with pytest.raises(MachineError):
        require_engine(Policy(), _engine("magic"))


@pytest.mark.parametrize("kept", [Guarantee.BEST_EFFORT, Guarantee.NOT_OFFERED])
def test_a_demanded_promise_must_be_enforced(kept: Guarantee) -> None:
    policy = Policy(enforced=("memory",))
    require_engine(policy, _engine(guarantees=Guarantees(pids=kept)))
    with pytest.raises(MachineError, match=f"memory to be enforced.*{kept.value}"):
        require_engine(policy, _engine(guarantees=Guarantees(memory=kept)))


def test_an_engine_that_declares_nothing_promises_nothing() -> None:
    require_engine(Policy(), _engine())
    with pytest.raises(MachineError, match="not offered"):
        require_engine(Policy(enforced=("image",)), _engine())
