"""Checks a claim of the paper against runs with equal seeds: confirmed, contradicted, or not distinguishable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean
from typing import Literal

from stipule.evaluation.statistics import mean_interval, seeds_to_decide
from stipule.reproduce.paper import Claim, Quantity
from stipule.reproduce.runs import Outcome

Conclusion = Literal["confirmed", "contradicted", "not distinguishable"]


@dataclass(frozen=True)
class Verdict:
    """The result of a claim. For accuracy the effect is better minus worse, else the ratio better / worse minus 1."""

    claim: str
    quantity: Quantity
    effect: float
    interval: tuple[float, float]
    conclusion: Conclusion
    seeds: int
    seeds_to_decide: int | None  # so many would make this effect with this variance exclude 0; None: no number would


def values(better: Outcome, worse: Outcome, quantity: Quantity) -> tuple[float, float] | None:
    """The two numbers that a claim compares, of one seed.

    Variances are means over the steps at which both runs logged one: a step without a group that has an advantage logs
    none. None if there is no such step.
    """
    match quantity:
        case "accuracy":
            return better.solved / len(better.correct), worse.solved / len(worse.correct)
        case "calls":
            return better.calls + better.anchor_calls, worse.calls + worse.anchor_calls
        case "calls of training":
            return better.calls, worse.calls
        case "seconds":
            return better.seconds, worse.seconds
    first, second = (
        (better.variance, worse.variance) if quantity == "variance" else (better.sum_variance, worse.sum_variance)
    )
    steps = first.keys() & second.keys()
    return (fmean(first[step] for step in steps), fmean(second[step] for step in steps)) if steps else None


def check_claim(claim: Claim, better: Sequence[Outcome], worse: Sequence[Outcome]) -> Verdict:
    """Compares runs in pairs of the same seed, by Student's 95 % interval of the mean effect.

    Runs with the same seed have the same problems, order and noise. A single seed decides only claims about forward
    passes, which have no randomness.
    """
    compared = [values(a, b, claim.quantity) for a, b in zip(better, worse, strict=True)]
    pairs = [pair for pair in compared if pair is not None]
    if not pairs:
        return Verdict(claim.text, claim.quantity, 0.0, (-inf, inf), "not distinguishable", 0, None)
    more_is_better = claim.quantity == "accuracy"
    effects = [a - b if more_is_better else a / b - 1 for a, b in pairs]
    if len(set(effects)) == 1:  # no variance: equal runs, or counts without randomness
        mean, low, high = effects[0], effects[0], effects[0]
        needed_seeds = None
    else:
        mean, low, high = mean_interval(effects)
        needed_seeds = seeds_to_decide(effects)
    gain = (low, high) if more_is_better else (-high, -low)
    conclusion: Conclusion = "confirmed" if gain[0] > 0 else "contradicted" if gain[1] < 0 else "not distinguishable"
    if len(effects) < 2 and not claim.quantity.startswith("calls"):
        conclusion, low, high = "not distinguishable", -inf, inf
    return Verdict(claim.text, claim.quantity, mean, (low, high), conclusion, len(effects), needed_seeds)


def check_claims(claims: Sequence[Claim], outcomes: Mapping[str, Sequence[Outcome]]) -> list[Verdict]:
    """A verdict for each claim; `outcomes` are by row, one for each seed."""
    return [check_claim(claim, outcomes[claim.better], outcomes[claim.worse]) for claim in claims]
