"""A claim of the paper against runs of the same seeds: confirmed, contradicted, or not to be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean
from typing import Literal

from stipule.evaluation.statistics import mean_interval, seeds_to_decide
from stipule.reproduce.paper import Claim, Quantity
from stipule.reproduce.runs import Outcome

Word = Literal["confirmed", "contradicted", "not distinguishable"]


@dataclass(frozen=True)
class Verdict:
    """How a claim came out. The effect is better minus worse in shares solved, else their ratio minus 1."""

    claim: str
    quantity: Quantity
    effect: float
    interval: tuple[float, float]
    word: Word
    seeds: int
    seeds_to_decide: int | None  # that would make this effect with this spread exclude 0; None: no number would


def values(better: Outcome, worse: Outcome, quantity: Quantity) -> tuple[float, float] | None:
    """What of two runs a claim compares.

    Variances are means over the steps at which both runs learned, since a step whose groups are all alike logs none;
    None if there is no such step.
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
    shared = first.keys() & second.keys()
    return (fmean(first[step] for step in shared), fmean(second[step] for step in shared)) if shared else None


def judge(claim: Claim, better: Sequence[Outcome], worse: Sequence[Outcome]) -> Verdict:
    """Paired over seeds, which share problems, order and noise: Student's 95 % interval of the mean effect.

    A single seed decides only what has no chance in it, the model calls.
    """
    compared = [values(a, b, claim.quantity) for a, b in zip(better, worse, strict=True)]
    pairs = [pair for pair in compared if pair is not None]
    if not pairs:
        return Verdict(claim.words, claim.quantity, 0.0, (-inf, inf), "not distinguishable", 0, None)
    more = claim.quantity == "accuracy"
    effects = [a - b if more else a / b - 1 for a, b in pairs]
    if len(set(effects)) == 1:  # no spread at all: equal, or counts that no chance enters
        middle, low, high = effects[0], effects[0], effects[0]
        decide = None
    else:
        middle, low, high = mean_interval(effects)
        decide = seeds_to_decide(effects)
    gain = (low, high) if more else (-high, -low)
    word: Word = "confirmed" if gain[0] > 0 else "contradicted" if gain[1] < 0 else "not distinguishable"
    if len(effects) < 2 and not claim.quantity.startswith("calls"):
        word, low, high = "not distinguishable", -inf, inf
    return Verdict(claim.words, claim.quantity, middle, (low, high), word, len(effects), decide)


def judge_all(claims: Sequence[Claim], outcomes: Mapping[str, Sequence[Outcome]]) -> list[Verdict]:
    """A verdict for each claim, from the outcomes of the rows that it names."""
    return [judge(claim, outcomes[claim.better], outcomes[claim.worse]) for claim in claims]
