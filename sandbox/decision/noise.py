"""How far runs of one and the same code lie apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Runs of the base with fresh seeds that estimate the spread; fewer when the first ones are all equal.
CALIBRATION_RUNS = 8
EQUAL_RUNS = 3


@dataclass(frozen=True)
class Noise:
    """The spread that calibration found: standard deviation `sigma`, and its degrees of freedom."""

    sigma: float
    df: int

    @classmethod
    def of(cls, values: tuple[float, ...]) -> Noise | None:
        """From runs of one tree with fresh seeds; None while there are too few of them."""
        equal = len(values) >= EQUAL_RUNS and len(set(values)) == 1
        if len(values) < CALIBRATION_RUNS and not equal:
            return None
        return cls(0.0 if equal else deviation(values), len(values) - 1)

    @property
    def deterministic(self) -> bool:
        """Whether every run gave the same value: one run then decides, and no statistical claim is made."""
        return self.sigma == 0.0


def mean(values: tuple[float, ...]) -> float:
    """The arithmetic mean, correctly rounded."""
    return math.fsum(values) / len(values)


def deviation(values: tuple[float, ...]) -> float:
    """The sample standard deviation (n - 1)."""
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))
