"""Whether an engine is as strong as the policy demands, and a result good enough to be promoted."""

from __future__ import annotations

from collections.abc import Iterable

from arsandbox.policies.model import ISOLATION, Policy, Trust
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import EngineInfo, Guarantee, Guarantees


def require_engine(policy: Policy, engine: EngineInfo) -> None:
    """Raises MachineError naming what `policy` asks for and `engine` does not give."""
    levels: tuple[str, ...] = ISOLATION
    if engine.isolation not in levels or levels.index(engine.isolation) < levels.index(policy.isolation):
        raise MachineError(
            f"the policy asks for isolation {policy.isolation!r}, but the {engine.name} engine here offers "
            f"{engine.isolation!r} ({engine.runtime})",
            hint="use a stronger engine (--engine docker, --runtime runsc), or lower `isolation` in the policy",
        )
    kept = engine.guarantees or Guarantees(**dict.fromkeys(Guarantees.model_fields, Guarantee.NOT_OFFERED))
    for name in policy.enforced:
        if getattr(kept, name) is not Guarantee.ENFORCED:
            raise MachineError(
                f"the policy asks for {name} to be enforced; with the {engine.name} engine here it is "
                f"{getattr(kept, name).value}",
                hint="arsandbox doctor says what is missing; or use another engine (--engine docker)",
            )
    if policy.network == "allowlist" and kept.egress is Guarantee.NOT_OFFERED:
        raise MachineError(
            f"a stage may reach {', '.join(policy.hosts)}, but the {engine.name} engine here ({engine.runtime}) "
            "offers no network",
            hint='leave `network = "none"` (what needs a network can run before, outside), or use another runtime',
        )


def require_policies(policies: Iterable[Policy], engine: EngineInfo) -> None:
    """Raises MachineError unless `engine` gives what each of `policies` asks for."""
    for policy in policies:
        require_engine(policy, engine)


def not_promotable(policy: Policy, trust: Trust | None, *, accept_self_reported: bool) -> str | None:
    """Why the policy lets no result of `trust` be promoted, or None where it may be."""
    if trust is None:
        return "it has no value that could be trusted at any level"
    if trust < policy.promote_trust:
        return f"the policy promotes from trust level {policy.promote_trust} on (promote_trust), and this is {trust}"
    if trust not in ("L0", "L1"):
        return None
    if policy.self_reported == "never":
        return f"the value is self-reported ({trust}), and the policy says self_reported = 'never'"
    if not accept_self_reported:
        return f"the value is self-reported ({trust}); --accept-self-reported promotes it"
    return None
