"""The sequential test: replayable, blind to order of arrival beyond its looks, and honest about luck and ties."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from arsandbox.sandbox.decision import DESIGNS, Noise, Rule, confirm, screen
from arsandbox.sandbox.models import Verdict
from arsandbox_fixtures.places import ROOT
from arsandbox_fixtures.programs import load

NOISE = Noise(sigma=1.0, df=7)
RULE = Rule("confirm", "loss", "min")


def around(mean: float, count: int, seed: int = 0, sigma: float = 1.0) -> tuple[float, ...]:
    values = np.random.default_rng(seed).normal(0, sigma, count)
    return tuple(float(v) for v in values - values.mean() + mean)


def test_a_clear_improvement_is_found_at_the_first_look_and_says_so() -> None:
    champion, candidate = around(10, 3), around(4, 3, 1)
    found = confirm(champion, candidate, NOISE, RULE)
    assert found is not None and found.verdict is Verdict.KEEP
    assert found.reason.startswith("better by 6 loss over 3 pairs, p = ")
    assert found.decision.pairs == 3 and found.decision.runs == candidate
    # By hand: z = 6 / (s sqrt(2/3)), s pooled from both sides and the calibration, at least sigma.
    from scipy.stats import norm, t

    squares = 2 * (np.var(champion, ddof=1) + np.var(candidate, ddof=1)) + 7 * 1.0
    s = max(np.sqrt(squares / 11), 1.0)
    assert found.decision.p_value == pytest.approx(t.sf(6 / (s * np.sqrt(2 / 3)), 11))
    assert found.decision.bound == pytest.approx(norm.sf(3.228))
    assert confirm((*champion, 0.0), (*candidate, 99.0), NOISE, RULE) == found  # what came later says nothing


@pytest.mark.parametrize("count", [0, 1, 2, 4, 6, 7, 9, 11])
def test_between_looks_nothing_is_decided(count: int) -> None:
    champion = around(10, 12)
    candidate = tuple(value - 1.3 for value in champion)
    candidate = tuple(v + (0.2 if i % 2 else -0.2) for i, v in enumerate(candidate))
    assert confirm(champion[:count], candidate[:count], NOISE, RULE) is None


def test_nothing_in_sight_ends_early_and_a_half_proof_ends_late() -> None:
    worse = confirm(around(10, 3), around(10.2, 3, 1), NOISE, RULE)
    assert worse is not None and worse.verdict is Verdict.DISCARD and "worse by 0.2 loss" in worse.reason
    champion, noise = around(0, 12, 3), around(0, 12, 4)
    rows = [(c, c - 0.9 + 0.05 * n) for c, n in zip(champion, noise, strict=True)]
    late = confirm(tuple(c for c, _ in rows), tuple(v for _, v in rows), NOISE, RULE)
    assert late is not None and late.verdict is Verdict.DISCARD
    assert late.decision.pairs == 12 and "not shown to be better" in late.reason


def test_the_goal_turns_the_sign() -> None:
    rule = Rule("confirm", "accuracy", "max")
    found = confirm(around(4, 3), around(10, 3, 1), NOISE, rule)
    assert found is not None and found.verdict is Verdict.KEEP and found.decision.difference == pytest.approx(6)


def test_pinned_luck_is_quarantined() -> None:
    same = confirm(around(10, 3), (4.0, 4.0, 4.0), NOISE, RULE)
    assert same is not None and same.verdict is Verdict.QUARANTINE and "every seed" in same.reason
    close = confirm(around(10, 3), (4.0, 4.0001, 4.0002), NOISE, RULE)
    assert close is not None and close.verdict is Verdict.QUARANTINE and "luck was pinned" in close.reason
    steadier = confirm(around(10, 3), (4.0, 4.05, 4.1), NOISE, RULE)  # a better optimiser may well spread less
    assert steadier is not None and steadier.verdict is Verdict.KEEP


def test_a_wild_candidate_is_unstable_and_tested_by_welch() -> None:
    from scipy.stats import ttest_ind

    champion, candidate = around(10, 3), (2.0, 6.0, 10.0)
    found = confirm(champion + around(10, 9, 5), candidate + (9.0,) * 9, NOISE, RULE)
    assert found is not None and found.decision.unstable and "unstable" in found.reason
    plain = ttest_ind(champion, candidate, equal_var=False, alternative="greater")
    first = confirm(around(10, 3, sigma=2.0), candidate, Noise(1.0, 7), Rule("quick", "loss", "min"))
    assert first is None  # 4 sigma, but from three wild runs: nobody can tell yet
    assert plain.pvalue > DESIGNS["confirm"].nominal


def test_the_least_gain_and_simplicity() -> None:
    wide = Rule("confirm", "loss", "min", min_delta=7.0)
    found = confirm(around(10, 3), around(4, 3, 1), NOISE, wide)
    assert found is not None and found.verdict is Verdict.DISCARD and "less than the 7" in found.reason
    simple = Rule("confirm", "loss", "min", prefer_simpler=True)
    champion = around(10, 12)
    equal = tuple(value - 0.01 for value in champion)
    kept = confirm(champion, equal, NOISE, simple, simpler=True)
    assert kept is not None and kept.verdict is Verdict.KEEP and "simpler" in kept.reason
    assert kept.decision.pairs == 12
    longer = confirm(champion, equal, NOISE, simple, simpler=False)
    assert longer is not None and longer.verdict is Verdict.DISCARD


@pytest.mark.parametrize(
    ("value", "noise", "verdict", "words"),
    [
        (9.0, NOISE, Verdict.DISCARD, "1.5 sigma"),
        (8.0, NOISE, Verdict.PENDING, "to be confirmed"),
        (9.9, None, Verdict.PENDING, "not calibrated yet"),
        (10.0, None, Verdict.DISCARD, "no change"),
        (11.0, NOISE, Verdict.DISCARD, "worse by 1"),
        (9.9, Noise(0.0, 2), Verdict.KEEP, "no spread over 3 seeds"),
        (10.0, Noise(0.0, 2), Verdict.DISCARD, "no change"),
    ],
)
def test_the_screen(value: float, noise: Noise | None, verdict: Verdict, words: str) -> None:
    found = screen(value, 10.0, noise, RULE)
    assert found.verdict is verdict and words in found.reason


def test_calibration() -> None:
    assert Noise.of((1.0, 1.0)) is None and Noise.of((1.0, 1.1, 1.0)) is None
    assert Noise.of((1.0, 1.0, 1.0)) == Noise(0.0, 2)
    found = Noise.of((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0))
    assert found is not None and found.df == 7 and found.sigma == pytest.approx(np.std(range(8), ddof=1))


# --- the simulation ---------------------------------------------------------------------------------------


def benchmark() -> ModuleType:
    return load(ROOT / "benchmarks" / "decision.py", "arsandbox_benchmark_decision")


def test_the_simulation_shows_what_the_rules_are_for() -> None:
    rows = {row.rule: row for row in benchmark().simulate(campaigns=100, edits=100, seed=3, known=False)}
    assert rows["greedy"].false_share > 0.4 and rows["greedy"].any_when_null > 0.9
    assert 0.05 < rows["min-delta"].false_share < 0.4
    assert rows["quick"].false_share < 0.06 and rows["confirm"].false_share < 0.03
    assert rows["confirm"].any_when_null < 0.1 < rows["min-delta"].any_when_null
    assert rows["confirm"].power_3 > 0.8 and rows["confirm"].power_4 > 0.95
    assert rows["greedy"].inflation > 1 > rows["confirm"].inflation
    assert rows["greedy"].extra == 0 < rows["confirm"].extra < 1.5


@pytest.mark.parametrize("name", ["confirm", "quick"])
def test_the_simulation_and_the_product_decide_alike(name: str) -> None:
    """The vectorised test of the benchmark promotes the same candidates as the one that runs."""
    module, design, rule = benchmark(), DESIGNS[name], Rule(name, "gain", "max")  # type: ignore[arg-type]
    effects = np.array([0.0, 1.0, 2.0, 3.0] * 15)
    promoted, pairs, _ = module.tested(effects, design, np.ones(60), NOISE.df, np.random.default_rng(5))
    again = np.random.default_rng(5)
    most = design.looks[-1]
    champion = again.standard_normal((60, most))
    candidate = effects[:, None] + again.standard_normal((60, most))
    for number in range(60):
        found = confirm(tuple(champion[number]), tuple(candidate[number]), NOISE, rule)
        assert found is not None
        assert (found.verdict is Verdict.KEEP, found.decision.pairs) == (promoted[number], pairs[number])
