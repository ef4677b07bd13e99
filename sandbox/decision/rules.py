"""The rules by name, and what the statistical ones ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from arsandbox.sandbox.models import Goal

RuleName = Literal["greedy", "min-delta", "quick", "confirm"]
# A candidate goes on from its one screening run when it beats the champion's mean by more than this many sigma.
SCREEN_SIGMAS = 1.5
# At a look, a mean gain of no more than this many sigma is given up on.
FUTILE_SIGMAS = 0.6
# A candidate that spreads more than this many times the calibrated sigma is tested by Welch's test instead.
UNSTABLE_SIGMAS = 1.5


@dataclass(frozen=True)
class Design:
    """A one-sided group-sequential test: looks after so many pairs, one critical value for all of them.

    `critical` is Pocock's constant for these looks, which keeps the chance of promoting a candidate that
    is no better, over all looks together, at `alpha` (Pocock 1977, Biometrika 64).
    """

    looks: tuple[int, ...]
    critical: float
    alpha: float

    @property
    def nominal(self) -> float:
        """The p-value that each look asks for: the normal tail beyond `critical`."""
        from scipy.stats import norm

        return float(norm.sf(self.critical))


DESIGNS = {
    "confirm": Design(looks=(3, 5, 8, 12), critical=3.228, alpha=0.002),
    "quick": Design(looks=(3, 5, 8), critical=2.630, alpha=0.01),
}


@dataclass(frozen=True)
class Rule:
    """How a project judges: the rule's name, the metric and its direction, and its two options.

    `min_delta` is the least gain that is worth keeping, in the metric's unit (`greedy` ignores it);
    `prefer_simpler` lets a candidate that removes more lines than it adds win at an equal metric.
    """

    name: RuleName
    metric: str
    goal: Goal
    min_delta: float = 0.0
    prefer_simpler: bool = False

    @property
    def design(self) -> Design | None:
        """The sequential test of this rule, None for a rule that decides on one run."""
        return DESIGNS.get(self.name)

    def gain(self, value: float, reference: float) -> float:
        """By how much `value` is better than `reference`; negative when it is worse."""
        return reference - value if self.goal == "min" else value - reference
