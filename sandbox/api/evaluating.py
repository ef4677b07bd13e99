"""Compare a result with its baseline: pure, and plain about what cannot be told."""

from __future__ import annotations

import math
from typing import Literal

from arsandbox.sandbox.models import Goal, Model


class Evaluation(Model):
    """`outcome` and the numbers behind it; `per_cent` is the gain in per cent of the baseline, None where that is 0."""

    outcome: Literal["improvement", "regression", "no change", "indeterminate"]
    value: float | None
    baseline: float | None
    gain: float | None = None
    per_cent: float | None = None
    message: str


def evaluate_result(
    value: float | None, baseline: float | None, *, goal: Goal = "min", min_delta: float = 0.0, name: str = "the metric"
) -> Evaluation:
    """Whether `value` improves on `baseline`: lower is better for `min`, higher for `max`.

    A gain or loss of less than `min_delta` (the metric's unit) is no change. Without a finite value, or without a
    finite baseline, nothing can be told. One measurement says nothing about noise: see docs/decisions.md.
    """
    if value is None or not math.isfinite(value):
        return Evaluation(
            outcome="indeterminate", value=None, baseline=baseline, message=f"indeterminate: {name} has no finite value"
        )
    if baseline is None or not math.isfinite(baseline):
        return Evaluation(
            outcome="indeterminate", value=value, baseline=None,
            message=f"indeterminate: {name} {value:.6g} is the first value, there is no baseline to compare with",
        )  # fmt: skip
    gain = baseline - value if goal == "min" else value - baseline
    share = 100 * gain / abs(baseline) if baseline else None
    by = f" by {abs(gain):.4g}" + ("" if share is None else f" ({abs(share):.2f}%)")
    words = f"{name} {value:.6g} against a baseline of {baseline:.6g}"
    rounding = 4 * max(math.ulp(value), math.ulp(baseline))  # so that 1.0 to 0.9 is a gain of 0.1
    if gain == 0 or abs(gain) < min_delta - rounding:
        return Evaluation(
            outcome="no change", value=value, baseline=baseline, gain=gain, per_cent=share,
            message=f"{words}: no change",
        )  # fmt: skip
    better = gain > 0
    return Evaluation(
        outcome="improvement" if better else "regression", value=value, baseline=baseline, gain=gain, per_cent=share,
        message=f"{words}: {'better' if better else 'worse'}{by}",
    )  # fmt: skip
