"""The decision as a table: measurements in, verdict and words out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arsandbox.sandbox.decision import implausible, judge
from arsandbox.sandbox.models import Verdict

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)


@pytest.mark.parametrize(
    ("value", "baseline", "goal", "rule", "min_delta", "verdict", "words"),
    [
        (0.9, 1.0, "min", "greedy", 0.0, Verdict.KEEP, "better by 0.1 (10.0%)"),
        (1.1, 1.0, "min", "greedy", 0.0, Verdict.DISCARD, "worse by 0.1 (10.0%)"),
        (1.0, 1.0, "min", "greedy", 0.0, Verdict.DISCARD, "no change"),
        (1.1, 1.0, "max", "greedy", 0.0, Verdict.KEEP, "better by 0.1 (10.0%)"),
        (0.9, 1.0, "max", "greedy", 0.0, Verdict.DISCARD, "worse by 0.1"),
        (0.9, 1.0, "min", "greedy", 5.0, Verdict.KEEP, "better"),  # greedy has no minimum
        (0.75, 1.0, "min", "min-delta", 0.25, Verdict.KEEP, "better by 0.25"),
        (0.8, 1.0, "min", "min-delta", 0.25, Verdict.DISCARD, "less than the 0.25 that is asked for"),
        (1.0, 1.0, "min", "min-delta", 0.0, Verdict.DISCARD, "no change"),
        (-2.0, -1.0, "min", "greedy", 0.0, Verdict.KEEP, "better by 1 (100.0%)"),
        (-0.5, 0.0, "min", "greedy", 0.0, Verdict.KEEP, "better by 0.5"),
        (math.nan, 1.0, "min", "greedy", 0.0, Verdict.DISCARD, ""),
        (math.nan, 1.0, "max", "min-delta", 0.1, Verdict.DISCARD, ""),
    ],
)
def test_table(
    value: float, baseline: float, goal: str, rule: str, min_delta: float, verdict: Verdict, words: str
) -> None:
    found = judge(value, baseline, name="loss", goal=goal, rule=rule, min_delta=min_delta)  # type: ignore[arg-type]
    assert found.verdict is verdict
    assert words in found.reason and found.reason.startswith("loss ")
    assert "\n" not in found.reason
    assert found.decision.rule == rule
    assert found.decision.bound == (min_delta if rule == "min-delta" else 0.0)


def test_an_improvement_of_exactly_the_minimum_counts_in_decimal_terms() -> None:
    found = judge(0.9, 1.0, name="loss", goal="min", rule="min-delta", min_delta=0.1)
    assert found.verdict is Verdict.KEEP, found.reason


@given(FINITE, FINITE, st.floats(min_value=0, max_value=10))
def test_keep_means_strictly_better_and_min_and_max_mirror_each_other(value: float, base: float, delta: float) -> None:
    down = judge(value, base, name="x", goal="min", rule="min-delta", min_delta=delta)
    up = judge(-value, -base, name="x", goal="max", rule="min-delta", min_delta=delta)
    assert down.verdict is up.verdict
    assert down.verdict in (Verdict.KEEP, Verdict.DISCARD)
    if down.verdict is Verdict.KEEP:
        assert value < base
    greedy = judge(value, base, name="x", goal="min", rule="greedy", min_delta=delta)
    assert (greedy.verdict is Verdict.KEEP) == (value < base)


@pytest.mark.parametrize(
    ("value", "bounds", "believed"),
    [
        (1.0, None, True),
        (1.0, (0.2, 16.0), True),
        (0.2, (0.2, 16.0), True),
        (16.0, (0.2, 16.0), True),
        (0.1999, (0.2, 16.0), False),
        (0.0, (0.2, 16.0), False),
        (-1e308, (0.2, 16.0), False),
        (math.inf, (0.2, 16.0), False),
        (math.nan, (0.2, 16.0), False),
    ],
)
def test_plausibility(value: float, bounds: tuple[float, float] | None, believed: bool) -> None:
    found = implausible(value, bounds)
    assert (found is None) is believed
    if found is not None:
        assert "0.2 to 16" in found
