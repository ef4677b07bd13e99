"""One run against the champion's mean: decided at once, or worth confirming."""

from __future__ import annotations

from arsandbox.sandbox.decision.noise import Noise
from arsandbox.sandbox.decision.rules import SCREEN_SIGMAS, Rule
from arsandbox.sandbox.decision.single import Judgement, judge
from arsandbox.sandbox.models import Verdict
from arsandbox.sandbox.record import Decision


def screen(value: float, reference: float, noise: Noise | None, rule: Rule, *, simpler: bool = False) -> Judgement:
    """Judge one measurement. `reference` is the champion's mean; `simpler`: the patch removes more than it adds.

    `keep` is only given where one run can decide: under `greedy` and `min-delta`, and for a metric whose
    calibration showed no spread. `noise` is None while it is not calibrated: then a better value is `pending`.
    """
    may_tie = rule.prefer_simpler and simpler
    if rule.design is None or (noise is not None and noise.deterministic):
        return _at_once(value, reference, noise, rule, may_tie)
    gain = rule.gain(value, reference)
    needed = max(SCREEN_SIGMAS * noise.sigma if noise else 0.0, rule.min_delta)
    decision = Decision(
        rule=rule.name,
        runs=(value,),
        bound=needed,
        difference=gain,
        sigma=noise.sigma if noise else None,
        sigma_df=noise.df if noise else None,
    )
    words = f"{rule.metric} {value:.6g} against the champion's {reference:.6g}"
    if may_tie and gain > -needed:
        return Judgement(Verdict.PENDING, f"{words}: about equal and simpler; to be confirmed", decision)
    if gain > needed:
        unknown = "" if noise else " (the noise of this set-up is not calibrated yet)"
        return Judgement(Verdict.PENDING, f"{words}: better by {gain:.4g}, to be confirmed{unknown}", decision)
    if gain > 0:
        asked = f"{SCREEN_SIGMAS} sigma" if noise and needed > rule.min_delta else "the least that counts"
        return Judgement(
            Verdict.DISCARD, f"{words}: better by {gain:.4g}, not by more than {needed:.4g} ({asked})", decision
        )
    how = "no change" if gain == 0 else f"worse by {-gain:.4g}"
    return Judgement(Verdict.DISCARD, f"{words}: {how}", decision)


def _at_once(value: float, reference: float, noise: Noise | None, rule: Rule, may_tie: bool) -> Judgement:
    name = "min-delta" if rule.design is not None and rule.min_delta else rule.name
    judged = judge(value, reference, name=rule.metric, goal=rule.goal, rule=name, min_delta=rule.min_delta)
    spread = {"sigma": noise.sigma, "sigma_df": noise.df} if noise is not None else {}
    gain = rule.gain(value, reference)
    decision = judged.decision.model_copy(update={"rule": rule.name, "difference": gain, **spread})
    reason = judged.reason
    if rule.design is not None and noise is not None:
        reason += f" (no spread over {noise.df + 1} seeds: one run decides)"
    if judged.verdict is Verdict.DISCARD and gain == 0 and may_tie:
        return Judgement(Verdict.KEEP, f"{reason}; kept because it is simpler", decision)
    return Judgement(judged.verdict, reason, decision)
