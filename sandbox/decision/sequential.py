"""The group-sequential test of a candidate against the champion, on pairs of fresh-seed runs.

Sources: Pocock (1977) for the looks' constant, Student's t for the tails, Welch (1947) and Satterthwaite
(1946) where the candidate spreads more than the champion.
"""

from __future__ import annotations

import math

from arsandbox.sandbox.decision.noise import Noise, deviation, mean
from arsandbox.sandbox.decision.rules import FUTILE_SIGMAS, UNSTABLE_SIGMAS, Design, Rule
from arsandbox.sandbox.decision.single import Judgement
from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.record import Decision

# A candidate whose spread is this unlikely under the calibrated sigma (chi-squared), and below this share
# of it, has pinned its luck.
PINNED_P, PINNED_SHARE = 1e-6, 0.05


def confirm(
    champion: tuple[float, ...], candidate: tuple[float, ...], noise: Noise, rule: Rule, *, simpler: bool = False
) -> Judgement | None:
    """Decide on the pairs so far; None where more pairs are needed. The screening run is never among them.

    Values are in the order of the pairs; every look up to now is taken again, so that the same runs
    always give the same answer. Verdicts: `keep`, `discard`, `quarantine` (the luck was pinned).
    """
    design = rule.design
    assert design is not None and len(champion) == len(candidate)  # noqa: S101 - the caller's contract
    last = design.looks[-1]
    for look in design.looks:
        if look > len(candidate):
            return None
        ours, theirs = candidate[:look], champion[:look]
        pinned = _pinned(ours, noise)
        found = _look(theirs, ours, noise, rule, design)
        if pinned is not None:
            return Judgement(Verdict.QUARANTINE, f"{rule.metric} {pinned}", found)
        assert found.difference is not None and found.p_value is not None  # noqa: S101 - just computed
        gain, p_value, words = found.difference, found.p_value, _words(found, rule.metric)
        if p_value < design.nominal:
            if gain >= rule.min_delta:
                return Judgement(Verdict.KEEP, words, found)
            return Judgement(Verdict.DISCARD, f"{words}: less than the {rule.min_delta:.4g} that is asked for", found)
        tie = rule.prefer_simpler and simpler and gain >= 0
        if gain <= FUTILE_SIGMAS * noise.sigma and not tie:
            return Judgement(Verdict.DISCARD, f"{words}: no improvement in sight", found)
        if look == last:
            if tie:
                return Judgement(Verdict.KEEP, f"{words}: not shown to be better; kept because it is simpler", found)
            return Judgement(Verdict.DISCARD, f"{words}: not shown to be better", found)
    return None


def _look(
    champion: tuple[float, ...], candidate: tuple[float, ...], noise: Noise, rule: Rule, design: Design
) -> Decision:
    n = len(candidate)
    gain = rule.gain(mean(candidate), mean(champion))
    spread = deviation(candidate)
    unstable = spread > UNSTABLE_SIGMAS * noise.sigma
    error, df = (_welch if unstable else _pooled)(champion, candidate, noise)
    from scipy.stats import t  # scipy takes a second to load: only where a test is made

    return Decision(
        rule=rule.name,
        runs=candidate,
        champion_runs=champion,
        pairs=n,
        difference=gain,
        p_value=float(t.sf(gain / error, df)),
        bound=design.nominal,
        alpha=design.alpha,
        sigma=noise.sigma,
        sigma_df=noise.df,
        unstable=unstable,
    )


def _pooled(champion: tuple[float, ...], candidate: tuple[float, ...], noise: Noise) -> tuple[float, float]:
    """(standard error of the difference, degrees of freedom), calibration's runs pooled in, never below sigma."""
    n = len(candidate)
    df = 2 * (n - 1) + noise.df
    squares = (n - 1) * (deviation(champion) ** 2 + deviation(candidate) ** 2) + noise.df * noise.sigma**2
    return max(math.sqrt(squares / df), noise.sigma) * math.sqrt(2 / n), float(df)


def _welch(champion: tuple[float, ...], candidate: tuple[float, ...], noise: Noise) -> tuple[float, float]:
    n = len(candidate)
    ours, theirs = deviation(candidate) ** 2 / n, max(deviation(champion), noise.sigma) ** 2 / n
    return math.sqrt(ours + theirs), (ours + theirs) ** 2 / ((ours**2 + theirs**2) / (n - 1))


def _pinned(values: tuple[float, ...], noise: Noise) -> str | None:
    """Why these values cannot come from fresh seeds, or None."""
    if len(set(values)) == 1:
        return f"is {values[0]:.6g} for every seed, where the base spreads by {noise.sigma:.3g}: the seed was pinned"
    share = deviation(values) / noise.sigma
    if share >= PINNED_SHARE:
        return None
    from scipy.stats import chi2

    if chi2.cdf((len(values) - 1) * share**2, len(values) - 1) < PINNED_P:
        return f"spreads by {share:.1%} of what the base does over {len(values)} seeds: the luck was pinned"
    return None


def _words(decision: Decision, metric: str) -> str:
    assert decision.difference is not None and decision.p_value is not None  # noqa: S101 - of _look
    how = "better" if decision.difference >= 0 else "worse"
    size = f"{abs(decision.difference):.4g}"
    unstable = ", unstable" if decision.unstable else ""
    return f"{how} by {size} {metric} over {decision.pairs} pairs, p = {decision.p_value:.2g}{unstable}"
