"""Whether an engine is as strong as the policy demands; nothing weaker is ever used quietly."""

from __future__ import annotations

from arsandbox.policies.model import ISOLATION, Policy
from arsandbox.sandbox.errors import MachineError
from arsandbox.sandbox.models import EngineInfo, Guarantee, Guarantees


def require_engine(policy: Policy, engine: EngineInfo) -> None:
    """Raises MachineError naming what `policy` asks for and `engine` does not give."""
    levels: tuple[str, ...] = ISOLATION
    if engine.isolation not in levels or levels.index(engine.isolation) < levels.index(policy.isolation):
        raise MachineError(
            f"the policy asks for isolation {policy.isolation!r}, but the {engine.name} engine here offers "
            f"{engine.isolation!r} ({engine.runtime})",
            hint="use a stronger engine (--engine docker), or lower `isolation` in the policy",
        )
    kept = engine.guarantees or Guarantees(**dict.fromkeys(Guarantees.model_fields, Guarantee.NOT_OFFERED))
    for name in policy.enforced:
        if getattr(kept, name) is not Guarantee.ENFORCED:
            raise MachineError(
                f"the policy asks for {name} to be enforced; with the {engine.name} engine here it is "
                f"{getattr(kept, name).value}",
                hint="arsandbox doctor says what is missing; or use another engine (--engine docker)",
            )
