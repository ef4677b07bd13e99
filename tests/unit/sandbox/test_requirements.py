import pytest

from arsandbox.policies.model import ISOLATION, Policy, Promise
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import EngineInfo, Guarantee, Guarantees
from arsandbox.sandbox.requirements import not_promotable, require_engine


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


def test_a_network_that_the_engine_does_not_offer_is_refused() -> None:
    policy = Policy(network="allowlist", hosts=("index.example:443",))
    with pytest.raises(MachineError, match=r"index\.example:443"):
        require_engine(policy, _engine())


@pytest.mark.parametrize(
    ("policy", "trust", "accepted", "why"),
    [
        ({}, "L2", False, None),
        ({}, "L0", False, "--accept-self-reported"),
        ({}, "L1", False, "--accept-self-reported"),
        ({}, "L0", True, None),
        ({"self_reported": "never"}, "L0", True, "never"),
        ({"self_reported": "never"}, "L2", False, None),
        ({"promote_trust": "L3"}, "L2", True, "promote_trust"),
        ({"promote_trust": "L3"}, "L4", False, None),
        ({"promote_trust": "L2"}, "L0", True, "promote_trust"),
        ({}, None, True, "no value"),
    ],
)
def test_what_may_be_promoted(policy: dict[str, str], trust: str | None, accepted: bool, why: str | None) -> None:
    found = not_promotable(Policy.model_validate(policy), trust, accept_self_reported=accepted)  # type: ignore[arg-type]
    assert found is None if why is None else why in (found or "")
