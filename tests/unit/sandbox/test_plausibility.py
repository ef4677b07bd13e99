"""What can be believed before anything is decided."""

from __future__ import annotations

import pytest

from arsandbox.sandbox.plausibility import conflict, too_good


@pytest.mark.parametrize(
    ("value", "goal", "jump", "strange"),
    [
        (0.69, "min", 0.3, True), (0.71, "min", 0.3, False), (1.31, "max", 0.3, True), (1.29, "max", 0.3, False),
        (5.0, "min", 0.3, False), (0.0, "min", None, False), (-9.0, "min", 0.3, True),
    ],
)  # fmt: skip
def test_a_gain_of_more_than_the_jump_is_too_good(value: float, goal: str, jump: float | None, strange: bool) -> None:
    assert bool(too_good(value, 1.0, goal, jump)) is strange  # type: ignore[arg-type]


def test_a_conflict_is_three_sigma_or_a_tenth() -> None:
    assert conflict(1.031, 1.0, 0.01) and not conflict(1.029, 1.0, 0.01)
    assert conflict(1.11, 1.0, None) and not conflict(1.09, 1.0, None)
    assert conflict(1.11, 1.0, 0.0)  # a spread of zero is no spread to measure by
