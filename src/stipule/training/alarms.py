"""Alarms: signs in a run's metrics that something goes wrong. Each is a sentence with advice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import isfinite, sqrt
from statistics import fmean, median, variance
from typing import Any, TypedDict

from stipule.errors import RecipeError


class Event(TypedDict):
    """An alarm as written in the `alarms` list of a metrics line."""

    name: str
    key: str  # the metric that raised it
    value: float | None  # None: not a number
    limit: float | None
    message: str


Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """Limits of metrics; null turns an alarm off. With the defaults no alarm is raised while the bundled base learns
    (docs/metrics.md).
    """

    ratio: float | None = 30.0  # policy/ratio_max, of one step
    clip_ratio: float | None = 0.5  # policy/clip_ratio, mean of 3 steps
    kl: float | None = 1.0  # policy/kl in nats per token, mean of 3 steps
    # variance/estimate (or /per_sample) of 5 steps, as a multiple of the first 5, while accuracy is below 0.9
    variance: float | None = 30.0
    grad_norm: float | None = 50.0  # policy/grad_norm of 3 steps, as a multiple of the first 5
    confidence: float | None = 0.998  # response/confidence, mean of 3 steps, while accuracy is below 0.5
    repetition: float | None = 0.5  # response/repetition, mean of 3 steps
    empty: float | None = 0.5  # response/empty, mean of 3 steps, while accuracy is below 0.5
    same_text: float | None = 0.9  # response/same_text, mean of 3 steps, while accuracy is below 0.5
    few_tokens: float | None = 0.75  # response/few_tokens, mean of 3 steps, while accuracy is below 0.5
    copies: float | None = 0.95  # response/copies, mean of 5 steps, while accuracy is below 0.9
    frac_nonzero_std: float | None = 0.02  # reward/frac_nonzero_std at most this, mean of 20 steps, accuracy below 0.9
    collapse: float | None = 0.5  # fraction of its best 10 steps that the mean reward may lose
    stop: bool = False  # end the run at the first alarm, and name the last checkpoint before it

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if field.name != "stop" and limit is not None and not (isfinite(limit) and limit >= 0):
                raise RecipeError(
                    f"alarms.{field.name} is {limit}; it is a limit and must be a number of 0 or more; set it to null "
                    "to turn the alarm off"
                )
        for name in ("variance", "grad_norm"):
            if (limit := getattr(self, name)) is not None and limit <= 1:
                raise RecipeError(
                    f"alarms.{name} is {limit}; it is a multiple of the first steps' value and must be above 1; try 30"
                )
        fractions = ("clip_ratio", "confidence", "repetition", "copies", "frac_nonzero_std", "collapse")
        for name in (*fractions, "empty", "same_text", "few_tokens"):
            if (limit := getattr(self, name)) is not None and limit > 1:
                raise RecipeError(
                    f"alarms.{name} is {limit}; it is a fraction and must lie in [0, 1]; null turns the alarm off"
                )

    def raised(self, lines: Sequence[Line]) -> list[Event]:
        """The alarms of the last line, given all lines up to it. Depends on the record only."""
        return [event for check in (self._values, self._growth, self._reward) for event in check(lines)]

    def _values(self, lines: Sequence[Line]) -> Iterator[Event]:
        """Metrics that are too high (or too low)."""
        for name, key, steps, message in VALUES:
            limit, value = getattr(self, name), _recent_mean(lines, key, steps)
            if limit is None or value is None or _is_success(name, lines, steps):
                continue
            if value > limit:
                yield _event(name, key, value, limit, message)
        value, accuracy = (_recent_mean(lines, key, 20) for key in ("reward/frac_nonzero_std", "reward/accuracy"))
        limit = self.frac_nonzero_std
        if limit is not None and value is not None and value <= limit and (accuracy or 0.0) < 0.9:
            yield _event("frac_nonzero_std", "reward/frac_nonzero_std", value, limit, FRAC_NONZERO_STD)

    def _growth(self, lines: Sequence[Line]) -> Iterator[Event]:
        """Metrics that have grown too far beyond their values in the first steps."""
        for name, keys, steps, message in GROWTH:
            limit = getattr(self, name)
            key = next((k for k in keys if lines and k in lines[-1]), None)
            if limit is None or key is None or not lines[-1].get("reward/frac_nonzero_std", 1.0):
                continue
            # A step without advantages has almost no gradient: it cannot serve as a baseline.
            values = [line[key] for line in lines if key in line and line.get("reward/frac_nonzero_std", 1.0)]
            early, late = values[:5], values[5:][-steps:]
            if len(late) < steps or median(early) <= 0 or _is_success(name, lines, steps):
                continue
            multiple = median(late) / median(early)
            if multiple > limit:
                yield _event(name, key, multiple, limit, message)

    def _reward(self, lines: Sequence[Line]) -> Iterator[Event]:
        """A mean reward that is not a number, or has lost most of its best ten steps, beyond chance."""
        values = [line["reward/mean"] for line in lines if "reward/mean" in line]
        if values and not isfinite(values[-1]):
            yield not_a_number("the mean reward of the step")
            return
        if self.collapse is None or len(values) < 10:
            return
        window = 10 if len(values) >= 20 else 5
        now, before = values[-window:], values[:-window]
        cuts = range(len(before) % window, len(before) + 1, window)
        best = max((before[a:b] for a, b in pairwise(cuts)), key=fmean)
        fall = fmean(best) - fmean(now)
        noise = sqrt((variance(best) + variance(now)) / window)
        if fmean(best) > 0 and fall > self.collapse * fmean(best) and fall > 3 * noise:
            yield _event("collapse", "reward/mean", fall / fmean(best), self.collapse, COLLAPSE)


def not_a_number(subject: str) -> Event:
    """The alarm of a reward that is NaN or infinite. The run cannot continue with it."""
    message = (
        f"{subject} is not a finite number, so no advantage can be computed from it; look at the reward function: if a "
        "division by zero or a parser error can occur, return a number, or None where the reward does not apply"
    )
    return {"name": "not_a_number", "key": "reward/mean", "value": None, "limit": None, "message": message}


def _recent_mean(lines: Sequence[Line], key: str, steps: int) -> float | None:
    """Mean over the last lines; None unless all of them have the key."""
    values = [line[key] for line in lines[-steps:] if key in line]
    return fmean(values) if len(values) == steps else None


def _is_success(name: str, lines: Sequence[Line], steps: int) -> bool:
    """Whether accuracy is so high that this metric is a sign of success, not of a problem."""
    return (_recent_mean(lines, "reward/accuracy", steps) or 0.0) >= SUCCESS.get(name, float("inf"))


def _event(name: str, key: str, value: float, limit: float, message: str) -> Event:
    return {
        "name": name, "key": key, "value": value, "limit": limit, "message": message.format(value=value, limit=limit)
    }  # fmt: skip


# name, metric, number of steps, message
VALUES = (
    (
        "ratio",
        "policy/ratio_max",
        1,
        "a token became {value:.3g} times as likely between two inner updates of one step (limit {limit:g}), so the "
        "clip no longer keeps the policy near the one that sampled; lower optimizer.learning_rate or "
        "training.num_iterations, or raise estimator.num_samples",
    ),
    (
        "clip_ratio",
        "policy/clip_ratio",
        3,
        "{value:.0%} of the tokens in the loss have no gradient because of the clip (limit {limit:.0%}); the inner "
        "updates go too far; lower optimizer.learning_rate or training.num_iterations",
    ),
    (
        "kl",
        "policy/kl",
        3,
        "the policy is {value:.3g} nats per token away from the reference (limit {limit:g}); it may be losing its "
        "language; raise objective.beta or lower optimizer.learning_rate, and read its responses",
    ),
    (
        "confidence",
        "response/confidence",
        3,
        "the model has a confidence of {value:.2%} in the tokens it unmasks (limit {limit:.2%}) though less than half "
        "of its responses are correct, so it no longer explores; raise sampler.temperature, set "
        "sampler.remasking=random, or go back to an earlier checkpoint with a lower optimizer.learning_rate",
    ),
    (
        "repetition",
        "response/repetition",
        3,
        "{value:.0%} of the sequences of four tokens repeat an earlier one of the same response (limit {limit:.0%}): "
        "the model loops; go back to an earlier checkpoint, lower optimizer.learning_rate or raise objective.beta",
    ),
    (
        "empty",
        "response/empty",
        3,
        "{value:.0%} of the responses have no text (limit {limit:.0%}): the model ends at once; check the prompts, "
        "check the base with stipule doctor, or lower optimizer.learning_rate and go back to an earlier checkpoint",
    ),
    (
        "same_text",
        "response/same_text",
        3,
        "{value:.0%} of a step's responses are the same text (limit {limit:.0%}), and less than half of its responses "
        "are correct; check the base with stipule doctor, raise sampler.temperature, or lower "
        "optimizer.learning_rate and go back to an earlier checkpoint",
    ),
    (
        "few_tokens",
        "response/few_tokens",
        3,
        "two tokens are {value:.0%} of all that is sampled (limit {limit:.0%}), and less than half of the responses "
        "are correct; check the base with stipule doctor, or lower optimizer.learning_rate and go back to an earlier "
        "checkpoint",
    ),
    (
        "copies",
        "response/copies",
        5,
        "in {value:.0%} of the groups every response is a copy of the first (limit {limit:.0%}), so no rewards differ; "
        "raise sampler.temperature (0 is greedy), set sampler.remasking=random, or lower pruning.spatial.ratio",
    ),
)
# At this accuracy a high value is a sign of success.
SUCCESS = {"confidence": 0.5, "empty": 0.5, "same_text": 0.5, "few_tokens": 0.5, "copies": 0.9, "variance": 0.9}
GROWTH = (
    (
        "variance",
        ("variance/estimate", "variance/per_sample"),
        5,
        "the variance of the likelihood estimates is {value:.3g} times that of the first steps (limit {limit:g}), so "
        "ratios and gradients are mostly noise; raise estimator.num_samples or estimator.t_min, or prune more",
    ),
    (
        "grad_norm",
        ("policy/grad_norm",),
        3,
        "the gradient norm is {value:.3g} times that of the first steps (limit {limit:g}); lower "
        "optimizer.learning_rate or optimizer.max_grad_norm, or raise estimator.t_min",
    ),
)
FRAC_NONZERO_STD = (
    "in {value:.0%} of the groups rewards differ (limit {limit:.0%}), so almost no response has an advantage; choose "
    "easier or harder problems, a reward with more values between wrong and correct, or raise sampler.temperature"
)
COLLAPSE = (
    "the mean reward has lost {value:.0%} of its best steps (limit {limit:.0%}), more than chance explains; go back to "
    "the last good checkpoint with a lower optimizer.learning_rate or a higher objective.beta"
)
