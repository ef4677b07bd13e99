"""Pure: what was measured in, verdict and words out. Anyone can replay it from the ledger."""

from __future__ import annotations

import math
from dataclasses import dataclass

from arsandbox.sandbox.models import Goal, Verdict
from arsandbox.sandbox.record import Decision


@dataclass(frozen=True)
class Judgement:
    """A verdict, its plain sentence, and the decision as it is recorded."""

    verdict: Verdict
    reason: str
    decision: Decision


def judge(value: float, baseline: float, *, name: str, goal: Goal, rule: str, min_delta: float) -> Judgement:
    """Compare one measurement with the baseline under `greedy` or `min-delta`.

    `greedy` keeps any strict improvement, `min-delta` one of at least `min_delta` (the metric's unit);
    "at least" to within the rounding of the subtraction, so that 1.0 to 0.9 is an improvement of 0.1.
    """
    gain = (baseline - value) if goal == "min" else (value - baseline)
    needed = min_delta if rule == "min-delta" else 0.0
    rounding = 4 * max(math.ulp(value), math.ulp(baseline))
    better = gain > 0 and gain >= needed - rounding
    decision = Decision(rule=rule, runs=(value,), bound=needed)
    words = f"{name} {value:.6g} against {baseline:.6g}"
    if better:
        return Judgement(Verdict.KEEP, f"{words}: better by {gain:.4g}{_percent(gain, baseline)}", decision)
    if gain > 0:
        return Judgement(
            Verdict.DISCARD,
            f"{words}: better by {gain:.4g}, less than the {needed:.4g} that is asked for",
            decision,
        )
    if gain == 0:
        return Judgement(Verdict.DISCARD, f"{words}: no change", decision)
    return Judgement(Verdict.DISCARD, f"{words}: worse by {-gain:.4g}{_percent(gain, baseline)}", decision)


def implausible(value: float, bounds: tuple[float, float] | None) -> str | None:
    """Why `value` cannot be believed, or None: `bounds` are the project's `metric.plausible`."""
    if bounds is None or bounds[0] <= value <= bounds[1]:
        return None
    return f"{value:.6g} is outside the plausible range of {bounds[0]:.6g} to {bounds[1]:.6g}"


def _percent(gain: float, baseline: float) -> str:
    return f" ({abs(gain / baseline):.1%})" if baseline else ""
