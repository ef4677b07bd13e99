"""Prediction intervals: against scipy's and numpy's own words, against known values, and by simulation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from arsandbox.sandbox.agreement import difference_interval, prediction_interval, within

VALUES = st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 6)), min_size=2, max_size=12)
PAIRS = VALUES.flatmap(
    lambda v: st.tuples(st.just(v), st.lists(st.floats(-1e6, 1e6), min_size=len(v), max_size=len(v)))
)


def expected_prediction(values: Sequence[float]) -> tuple[float, float]:
    """The textbook's interval, by scipy's own `interval` of a scaled t."""
    count = len(values)
    scale = np.std(values, ddof=1) * np.sqrt(1 + 1 / count)
    low, high = stats.t.interval(0.99, count - 1, loc=np.mean(values), scale=scale)
    return float(low), float(high)


def expected_difference(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    count = len(values)
    pooled = np.sqrt(((count - 1) * np.var(values, ddof=1) + (count - 1) * np.var(baseline, ddof=1)) / (2 * count - 2))
    middle = np.mean(values) - np.mean(baseline)
    # One more pair: its difference has variance 2 s^2, the difference of the two means 2 s^2 / n.
    low, high = stats.t.interval(0.99, 2 * count - 2, loc=middle, scale=pooled * np.sqrt(2 + 2 / count))
    return float(low), float(high)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        # t(.995, 2) = 9.924843, s = 1, sqrt(1 + 1/3)
        ([1.0, 2.0, 3.0], 2 - 9.924843 * math.sqrt(4 / 3), 2 + 9.924843 * math.sqrt(4 / 3)),
        # t(.995, 1) = 63.656741, s = sqrt(2)/2, sqrt(1.5)
        ([0.0, 1.0], 0.5 - 63.656741 * math.sqrt(0.5) * math.sqrt(1.5), 0.5 + 63.656741 * math.sqrt(0.5 * 1.5)),
        # t(.995, 4) = 4.604095, s = sqrt(2.5)
        ([1, 2, 3, 4, 5], 3 - 4.604095 * math.sqrt(2.5 * 1.2), 3 + 4.604095 * math.sqrt(2.5 * 1.2)),
    ],
)
def test_known_prediction_intervals(values: list[float], low: float, high: float) -> None:
    assert prediction_interval(values) == pytest.approx((low, high), rel=1e-6)


def test_a_known_interval_of_a_difference() -> None:
    # Means 3 and 10, pooled variance (1 + 4) / 2, t(.995, 4) = 4.604095, n = 3
    reach = 4.604095 * math.sqrt(2.5) * math.sqrt(2) * math.sqrt(4 / 3)
    assert difference_interval([2, 3, 4], [8, 10, 12]) == pytest.approx((-7 - reach, -7 + reach), rel=1e-6)


@given(values=VALUES)
def test_the_prediction_interval_is_the_one_that_scipy_gives(values: list[float]) -> None:
    scale = max(1.0, *(abs(v) for v in values))
    if statistics.stdev(values) < 1e-7 * scale:
        values = [v + n * scale for n, v in enumerate(values)]
    assert prediction_interval(values) == pytest.approx(expected_prediction(values), rel=1e-9, abs=1e-6 * scale)


@given(pair=PAIRS)
def test_the_interval_of_a_difference_is_the_one_that_scipy_gives(pair: tuple[list[float], list[float]]) -> None:
    values, baseline = pair
    scale = max(1.0, *(abs(v) for v in (*values, *baseline)))
    values = [v + 3 * n * scale for n, v in enumerate(values)]
    found = difference_interval(values, baseline)
    assert found == pytest.approx(expected_difference(values, baseline), rel=1e-9, abs=1e-6 * scale)


@given(values=VALUES, factor=st.floats(1.1, 50))
def test_more_spread_gives_a_wider_interval_around_the_same_middle(values: list[float], factor: float) -> None:
    values = [v + n for n, v in enumerate(values)]
    if statistics.stdev(values) < 1e-3:
        values = [float(n) for n in range(len(values))]
    middle = statistics.fmean(values)
    spread = [middle + factor * (v - middle) for v in values]
    low, high = prediction_interval(values)
    wide_low, wide_high = prediction_interval(spread)
    assert wide_low < low <= middle <= high < wide_high
    assert wide_high - wide_low == pytest.approx(factor * (high - low), rel=1e-6)
    narrow = difference_interval(values, [0.0] * len(values))
    wide = difference_interval(spread, [0.0] * len(values))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@given(value=st.floats(-1e6, 1e6), other=st.floats(-1e6, 1e6), count=st.integers(2, 9))
def test_without_spread_the_interval_is_a_point(value: float, other: float, count: int) -> None:
    low, high = prediction_interval([value] * count)
    assert low == high and within(value, low, high)
    assert not within(value + max(1e-3, abs(value) * 1e-6), low, high)
    low, high = difference_interval([value] * count, [other] * count)
    assert low == high == pytest.approx(value - other, abs=1e-9)


def test_spread_in_the_baseline_alone_widens_a_difference() -> None:
    low, high = difference_interval([1.0, 1.0, 1.0], [2.0, 2.1, 1.9])
    assert low < -1 < high and high - low > 0.3
    swapped = difference_interval([2.0, 2.1, 1.9], [1.0, 1.0, 1.0])
    assert swapped == pytest.approx((-high, -low), rel=1e-12)


@given(values=VALUES, shift=st.floats(-1e3, 1e3))
def test_a_shift_moves_the_interval_and_the_order_does_not_matter(values: list[float], shift: float) -> None:
    values = [v + n for n, v in enumerate(values)]
    low, high = prediction_interval(values)
    scale = 1e-9 * max(1.0, abs(low), abs(high))
    assert prediction_interval([v + shift for v in values]) == pytest.approx((low + shift, high + shift), abs=scale)
    assert prediction_interval(values[::-1]) == pytest.approx((low, high), abs=scale)


def test_more_runs_of_the_same_spread_give_a_narrower_interval() -> None:
    widths = []
    for count in (2, 3, 5, 8, 12, 40):
        values = np.linspace(-1, 1, count)
        values = values / np.std(values, ddof=1)
        low, high = prediction_interval(values.tolist())
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == len(widths)
    assert widths[-1] > 2 * stats.norm.ppf(0.995)


@pytest.mark.parametrize("count", [3, 5, 8])
def test_a_further_run_lies_in_the_interval_99_times_of_100(count: int) -> None:
    rng = np.random.default_rng(20240102)
    trials = 4000
    draws = rng.normal(1.2, 0.003, size=(trials, count + 1))
    inside = sum(within(row[-1], *prediction_interval(row[:-1].tolist())) for row in draws)
    # Binomial: 4 standard deviations of 4,000 trials at 1% are 0.63%.
    assert abs(inside / trials - 0.99) < 4 * math.sqrt(0.99 * 0.01 / trials)


@pytest.mark.parametrize("count", [3, 5, 8])
def test_a_further_pair_lies_in_the_interval_99_times_of_100(count: int) -> None:
    rng = np.random.default_rng(20240103)
    trials = 4000
    ours = rng.normal(1.19, 0.003, size=(trials, count + 1))
    theirs = rng.normal(1.2, 0.003, size=(trials, count + 1))
    inside = sum(
        within(a[-1] - b[-1], *difference_interval(a[:-1].tolist(), b[:-1].tolist()))
        for a, b in zip(ours, theirs, strict=True)
    )
    assert abs(inside / trials - 0.99) < 4 * math.sqrt(0.99 * 0.01 / trials)


def test_a_value_from_another_distribution_is_outside() -> None:
    rng = np.random.default_rng(7)
    values = rng.normal(1.2, 0.001, size=5).tolist()
    low, high = prediction_interval(values)
    assert within(1.2, low, high) and not within(1.25, low, high) and not within(1.15, low, high)


def test_within_includes_the_bounds_and_the_last_bits_but_no_more() -> None:
    assert within(0.0, 0.0, 0.0) and within(-1.5, -1.5, 2.0) and within(2.0, -1.5, 2.0)
    assert within(0.1 + 0.2, 0.3, 0.3) and within(0.3, 0.1 + 0.2, 0.1 + 0.2)
    assert not within(0.3 + 1e-9, 0.3, 0.3) and not within(0.3 - 1e-9, 0.3, 0.3)
    assert not within(1e-300, 0.0, 0.0)
    assert not within(math.nan, 0.0, 1.0)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_values_have_no_interval(values: list[float]) -> None:
    with pytest.raises(ValueError):
        prediction_interval(values)
    with pytest.raises(ValueError):
        difference_interval(values, values)
