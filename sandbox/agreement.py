"""Pure: intervals that fresh runs predict for a recorded value. 99%, two-sided, Student's t.

Prediction interval of one further observation: mean +- t(.995, n-1) * s * sqrt(1 + 1/n); for the
difference of two groups with pooled spread the same with 2(n-1) degrees of freedom and sqrt(2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_CONFIDENCE = 0.995
_RELATIVE_ROUNDING = 1e-12


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """The interval in which one more run of the same kind is expected (at least two values)."""
    spread = statistics.stdev(values) * math.sqrt(1 + 1 / len(values))
    return _around(statistics.fmean(values), spread, len(values) - 1)


def difference_interval(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """The interval in which the difference of one more pair is expected (equal numbers, at least two)."""
    pooled = math.sqrt((statistics.variance(values) + statistics.variance(baseline)) / 2)
    spread = pooled * math.sqrt(2) * math.sqrt(1 + 1 / len(values))
    middle = statistics.fmean(values) - statistics.fmean(baseline)
    return _around(middle, spread, len(values) + len(baseline) - 2)


def within(value: float, low: float, high: float) -> bool:
    """Whether `value` lies in the interval, allowing for the last bits of floating-point sums."""
    slack = _RELATIVE_ROUNDING * max(abs(value), abs(low), abs(high))
    return low - slack <= value <= high + slack


def _around(middle: float, spread: float, degrees: int) -> tuple[float, float]:
    if spread == 0:
        return middle, middle
    from scipy import stats  # half a second to load: only when there is a spread

    reach = float(stats.t.ppf(_CONFIDENCE, degrees)) * spread
    return middle - reach, middle + reach
