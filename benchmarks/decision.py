"""Simulate the decision rules: how often luck is promoted, how often an improvement is found, what it costs.

    python benchmarks/decision.py [--campaigns 400] [--edits 200] [--seed 1] [--known]

Unit: sigma, the standard deviation of one run. A campaign is `--edits` candidates, one after the other, against
one champion. In the mixed campaign 2% of the edits are better by 3 sigma, 8% by 1 sigma, 40% worse by 1 sigma and
the rest are null. A promotion is false when the edit is truly no better than the champion it replaced. The same
looks, constants and formulas as in arsandbox.sandbox.decision, vectorised over campaigns. With `--known`, sigma and
the first champion's mean are taken as known instead of calibrated by 8 runs, as a design study would: what differs
between the two tables is what calibrating costs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import norm, t

from arsandbox.sandbox.decision.noise import CALIBRATION_RUNS
from arsandbox.sandbox.decision.rules import DESIGNS, FUTILE_SIGMAS, SCREEN_SIGMAS, UNSTABLE_SIGMAS, Design

EFFECTS = (3.0, 1.0, -1.0, 0.0)
SHARES = (0.02, 0.08, 0.40, 0.50)
RULES = ("greedy", "min-delta", "quick", "confirm")
Array = np.ndarray


@dataclass(frozen=True)
class Row:
    """One rule: shares are of 1; `inflation` is how far, in sigma, the champion's value flatters it at the end;
    `extra` is the runs beyond one an edit, calibration left out."""

    rule: str
    false_share: float
    any_when_null: float
    inflation: float
    extra: float
    power_2: float
    power_3: float
    power_4: float


def tested(
    effect: Array, design: Design, sigma: Array, calibrated: float, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """(promoted, pairs used, mean of the candidate's runs relative to the champion's true value)."""
    n_all, most = effect.shape[0], design.looks[-1]
    champion = rng.standard_normal((n_all, most))
    candidate = effect[:, None] + rng.standard_normal((n_all, most))
    promoted, open_, pairs = np.zeros(n_all, bool), np.ones(n_all, bool), np.zeros(n_all, int)
    mean = np.zeros(n_all)
    for look in design.looks:
        ours, theirs = candidate[:, :look], champion[:, :look]
        gain = ours.mean(1) - theirs.mean(1)
        own, other = ours.var(1, ddof=1), theirs.var(1, ddof=1)
        df = 2.0 * (look - 1) + calibrated
        pooled = ((look - 1) * (own + other) + calibrated * sigma**2) / df
        error = np.maximum(np.sqrt(pooled), sigma) * np.sqrt(2 / look)
        a, b = own / look, np.maximum(other, sigma**2) / look
        unstable = np.sqrt(own) > UNSTABLE_SIGMAS * sigma
        error = np.where(unstable, np.sqrt(a + b), error)
        df_ = np.where(unstable, (a + b) ** 2 / ((a**2 + b**2) / (look - 1)), df)
        wins = open_ & (t.sf(gain / error, df_) < norm.sf(design.critical))
        promoted |= wins
        mean = np.where(open_, ours.mean(1), mean)
        pairs = np.where(open_, look, pairs)
        open_ &= ~wins & (gain > FUTILE_SIGMAS * sigma)
    return promoted, pairs, mean


def campaign(rule: str, effects: Array, rng: np.random.Generator, exact: bool) -> tuple[Array, Array, Array, Array]:
    """(promotions, false ones, runs beyond one an edit, inflation at the end), a value a campaign."""
    many, edits = effects.shape
    calibration = rng.standard_normal((many, CALIBRATION_RUNS))
    sigma, known, calibrated = calibration.std(1, ddof=1), calibration.mean(1), CALIBRATION_RUNS - 1.0
    if exact:
        sigma, known, calibrated = np.ones(many), np.zeros(many), 1e9
    truth, promotions, false, extra = np.zeros(many), np.zeros(many), np.zeros(many), np.zeros(many)
    if rule in ("greedy", "min-delta"):
        known = calibration[:, 0]
    for edit in range(edits):
        effect = effects[:, edit]
        value = truth + effect + rng.standard_normal(many)
        needed = {"greedy": 0.0, "min-delta": 2.0}.get(rule, SCREEN_SIGMAS * sigma)
        wins, new = value - known > needed, value
        if rule in DESIGNS:
            chosen = np.flatnonzero(wins)
            promoted, pairs, mean = tested(effect[chosen], DESIGNS[rule], sigma[chosen], calibrated, rng)
            extra[chosen] += 2 * pairs
            wins = np.zeros(many, bool)
            wins[chosen] = promoted
            new = known.copy()
            new[chosen] = truth[chosen] + mean
        promotions += wins
        false += wins & (effect <= 0)
        truth = np.where(wins, truth + effect, truth)
        known = np.where(wins, new, known)
    return promotions, false, extra, known - truth


def power(rule: str, effect: float, many: int, rng: np.random.Generator, known: bool) -> float:
    """The share of edits better by `effect` sigma that are promoted, the screening run included."""
    promotions, _, _, _ = campaign(rule, np.full((many, 1), effect), rng, known)
    return float(promotions.mean())


def simulate(campaigns: int, edits: int, seed: int, known: bool) -> list[Row]:
    """The table."""
    rows = []
    for number, rule in enumerate(RULES):
        rng = np.random.default_rng((seed, number))
        mixed = rng.choice(EFFECTS, size=(campaigns, edits), p=SHARES)
        promotions, false, extra, inflation = campaign(rule, mixed, rng, known)
        null, _, _, _ = campaign(rule, np.zeros((campaigns, edits)), rng, known)
        powers = [power(rule, effect, 20 * campaigns, rng, known) for effect in (2.0, 3.0, 4.0)]
        rows.append(
            Row(
                rule=rule,
                false_share=float(false.sum() / max(promotions.sum(), 1)),
                any_when_null=float((null > 0).mean()),
                inflation=float(inflation.mean()),
                extra=float(extra.mean() / edits),
                power_2=powers[0],
                power_3=powers[1],
                power_4=powers[2],
            )
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=400)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--known", action="store_true", help="sigma and the champion's mean are known, not calibrated")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = simulate(options.campaigns, options.edits, options.seed, options.known)
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print("| rule | false share | P(any, all null) | inflation | extra runs | power at 2, 3, 4 sigma |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        powers = ", ".join(f"{p:.0%}" for p in (row.power_2, row.power_3, row.power_4))
        print(
            f"| {row.rule} | {row.false_share:.1%} | {row.any_when_null:.1%} | {row.inflation:+.2f} sigma"
            f" | {row.extra:.0%} | {powers} |"
        )


if __name__ == "__main__":
    main()
