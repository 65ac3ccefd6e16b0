"""Alarms: what a run's record says when it goes wrong, each a plain sentence with a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import isfinite, sqrt
from statistics import fmean, median, variance
from typing import Any, TypedDict

from stipule.errors import RecipeError


class Event(TypedDict):
    """An alarm as it stands in the `alarms` list of a metrics line."""

    name: str
    key: str  # the metric it was raised on
    value: float | None  # None: not a number
    limit: float | None
    words: str


Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """Thresholds; null turns one off. The defaults stay silent while the bundled base learns (docs/metrics.md)."""

    ratio: float | None = 30.0  # policy/ratio_max, of one step
    clipped: float | None = 0.5  # policy/clipped, mean of 3 steps
    kl: float | None = 1.0  # policy/kl in nats per token, mean of 3 steps
    variance: float | None = (
        30.0  # variance/estimate (or /draw), 5 steps over the first 5, while less than 0.9 is solved
    )
    gradient: float | None = 50.0  # policy/gradient_norm of 3 steps, as a multiple of the first 5
    confidence: float | None = 0.998  # response/confidence, mean of 3 steps, while less than half is solved
    repetition: float | None = 0.5  # response/repetition, mean of 3 steps
    copies: float | None = 0.95  # response/copies, mean of 5 steps, while less than 0.9 is solved
    spread: float | None = 0.02  # reward/spread at most this, mean of 20 steps, while less than 0.9 is solved
    collapse: float | None = 0.5  # share of its best 10 steps that the mean reward may lose
    stop: bool = False  # end the run at the first alarm, and name the last checkpoint before it

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if field.name != "stop" and limit is not None and not (isfinite(limit) and limit >= 0):
                raise RecipeError(
                    f"alarms.{field.name} is {limit}; it is a threshold and must be a number of 0 or more; give null "
                    "to turn the alarm off"
                )
        for name in ("variance", "gradient"):
            if (limit := getattr(self, name)) is not None and limit <= 1:
                raise RecipeError(
                    f"alarms.{name} is {limit}; it is a multiple of the first steps' value and must be above 1; try 30"
                )
        for name in ("clipped", "confidence", "repetition", "copies", "spread", "collapse"):
            if (limit := getattr(self, name)) is not None and limit > 1:
                raise RecipeError(f"alarms.{name} is {limit}; it is a share and must lie in [0, 1]; null turns it off")

    def raised(self, lines: Sequence[Line]) -> list[Event]:
        """The alarms of the last line, given all lines up to it: a function of the record alone."""
        return [event for check in (self._levels, self._growth, self._reward) for event in check(lines)]

    def _levels(self, lines: Sequence[Line]) -> Iterator[Event]:
        """Metrics that stand too high (or too low) by themselves."""
        for name, key, steps, words in LEVELS:
            limit, value = getattr(self, name), _recent(lines, key, steps)
            if limit is None or value is None:
                continue
            if (_recent(lines, "reward/solved", steps) or 0.0) >= SOLVED.get(name, float("inf")):
                continue
            if value > limit:
                yield _event(name, key, value, limit, words)
        value, solved = (_recent(lines, key, 20) for key in ("reward/spread", "reward/solved"))
        if self.spread is not None and value is not None and value <= self.spread and (solved or 0.0) < 0.9:
            yield _event("spread", "reward/spread", value, self.spread, SPREAD)

    def _growth(self, lines: Sequence[Line]) -> Iterator[Event]:
        """Metrics that have grown too far beyond what they were in the first steps."""
        for name, keys, steps, words in GROWTH:
            limit = getattr(self, name)
            key = next((k for k in keys if lines and k in lines[-1]), None)
            if limit is None or key is None or not lines[-1].get("reward/spread", 1.0):
                continue
            # A step without advantages has next to no gradient: nothing to measure growth by.
            values = [line[key] for line in lines if key in line and line.get("reward/spread", 1.0)]
            early, late = values[:5], values[5:][-steps:]
            if len(late) < steps or median(early) <= 0:
                continue
            if (_recent(lines, "reward/solved", steps) or 0.0) >= SOLVED.get(name, float("inf")):
                continue
            times = median(late) / median(early)
            if times > limit:
                yield _event(name, key, times, limit, words)

    def _reward(self, lines: Sequence[Line]) -> Iterator[Event]:
        """A mean reward that is not a number, or has lost most of its best ten steps, beyond what chance explains."""
        values = [line["reward/mean"] for line in lines if "reward/mean" in line]
        if values and not isfinite(values[-1]):
            yield not_a_number("the mean reward of the step")
            return
        if self.collapse is None or len(values) < 10:
            return
        block = 10 if len(values) >= 20 else 5
        now, before = values[-block:], values[:-block]
        cuts = range(len(before) % block, len(before) + 1, block)
        best = max((before[a:b] for a, b in pairwise(cuts)), key=fmean)
        fall = fmean(best) - fmean(now)
        noise = sqrt((variance(best) + variance(now)) / block)
        if fmean(best) > 0 and fall > self.collapse * fmean(best) and fall > 3 * noise:
            yield _event("collapse", "reward/mean", fall / fmean(best), self.collapse, COLLAPSE)


def not_a_number(what: str) -> Event:
    """The alarm of a reward that is NaN or infinite; the run cannot go on with it."""
    words = (
        f"{what} is not a finite number, so no advantage can be computed from it; look at the reward function: a "
        "division by zero or a parse that fails must return a number, or None where it does not apply"
    )
    return {"name": "not_a_number", "key": "reward/mean", "value": None, "limit": None, "words": words}


def _recent(lines: Sequence[Line], key: str, steps: int) -> float | None:
    """Mean over the last lines that have the key; None before there are enough."""
    values = [line[key] for line in lines[-steps:] if key in line]
    return fmean(values) if len(values) == steps else None


def _event(name: str, key: str, value: float, limit: float, words: str) -> Event:
    return {"name": name, "key": key, "value": value, "limit": limit, "words": words.format(value=value, limit=limit)}


LEVELS = (
    (
        "ratio",
        "policy/ratio_max",
        1,
        "a token became {value:.3g} times as likely between two inner updates of one step (limit {limit:g}), so the "
        "clip no longer holds the policy near the one that sampled; lower optimizer.learning_rate or training.updates, "
        "or raise estimator.samples",
    ),
    (
        "clipped",
        "policy/clipped",
        3,
        "{value:.0%} of the scored tokens get no gradient because the clip has stopped them (limit {limit:.0%}); the "
        "inner updates go too far; lower optimizer.learning_rate or training.updates",
    ),
    (
        "kl",
        "policy/kl",
        3,
        "the policy is {value:.3g} nats per token away from the reference (limit {limit:g}); it may be leaving the "
        "language it knew; raise objective.kl or lower optimizer.learning_rate, and read its responses",
    ),
    (
        "confidence",
        "response/confidence",
        3,
        "the model is {value:.2%} sure of the tokens it commits (limit {limit:.2%}) though less than half of its "
        "responses are right, so it no longer explores; raise sampler.temperature, set sampler.order=random, or go "
        "back to an earlier checkpoint with a lower optimizer.learning_rate",
    ),
    (
        "repetition",
        "response/repetition",
        3,
        "{value:.0%} of the runs of four tokens repeat an earlier one of the same response (limit {limit:.0%}): the "
        "model loops; go back to an earlier checkpoint, lower optimizer.learning_rate or raise objective.kl",
    ),
    (
        "copies",
        "response/copies",
        5,
        "in {value:.0%} of the groups every response is a copy of the first (limit {limit:.0%}), so there is nothing "
        "to compare; raise sampler.temperature (0 is greedy), set sampler.order=random, or lower "
        "pruning.spatial.ratio",
    ),
)
# Where so much is solved, these are what success looks like.
SOLVED = {"confidence": 0.5, "copies": 0.9, "variance": 0.9}
GROWTH = (
    (
        "variance",
        ("variance/estimate", "variance/draw"),
        5,
        "the likelihood estimates scatter {value:.3g} times as much as in the first steps (limit {limit:g}), so ratios "
        "and gradients are mostly noise; raise estimator.samples or estimator.t_min, or prune more",
    ),
    (
        "gradient",
        ("policy/gradient_norm",),
        3,
        "the gradient is {value:.3g} times as long as in the first steps (limit {limit:g}); lower "
        "optimizer.learning_rate or optimizer.max_norm, or raise estimator.t_min",
    ),
)
SPREAD = (
    "in {value:.0%} of the groups rewards differ (limit {limit:.0%}), so hardly any response teaches; choose easier or "
    "harder problems, a reward with more steps between wrong and right, or raise sampler.temperature"
)
COLLAPSE = (
    "the mean reward has lost {value:.0%} of its best steps (limit {limit:.0%}), more than chance explains; go back to "
    "the last good checkpoint with a lower optimizer.learning_rate or a higher objective.kl"
)
