"""Pure: whether a value can be believed, before anything is decided on it."""

from __future__ import annotations

from arsandbox.sandbox.models import Goal

# Where no spread is known, a self-reported value further from the trusted one than this share of it is a conflict.
CONFLICT_SHARE = 0.1
CONFLICT_SIGMAS = 3.0


def too_good(value: float, baseline: float, goal: Goal, jump: float | None) -> str | None:
    """Why a gain over `baseline` needs a human's look, or None: `jump` is the largest share of it (`metric.jump`)."""
    gain = baseline - value if goal == "min" else value - baseline
    if jump is None or gain <= jump * abs(baseline):
        return None
    return f"{value:.6g} is better than {baseline:.6g} by more than {jump:.0%} in one step"


def conflict(said: float, found: float, sigma: float | None) -> bool:
    """Whether a self-reported value contradicts the trusted one: by 3 sigma, or where no sigma is known by a tenth."""
    allowed = CONFLICT_SIGMAS * sigma if sigma else CONFLICT_SHARE * abs(found)
    return abs(said - found) > allowed
