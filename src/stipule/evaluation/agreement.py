"""Compares approximate rollouts with exact rollouts from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stipule.evaluation.statistics import Paired, mean_interval
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator
from stipule.rollouts.reward_batch import RewardBatch, grade_responses
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Problem, Task
from stipule.types import Rollouts


@dataclass(frozen=True)
class Agreement:
    """The same rows, sampled exactly (first) and approximately (second)."""

    tokens: float  # fraction of equal tokens, over the positions of `completion_mask` in either response
    solved: Paired
    distinct: tuple[float, float]  # mean fraction of distinct texts in a group
    nfe: tuple[int, int]  # rows x model calls; a partial call counts as one
    by_problem: tuple[float, ...]  # difference in the accuracy of each group

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference in accuracy: from the lower to the higher end of two intervals.

        Responses to one problem are correlated, so an interval over rows is too narrow. An interval over problems is
        0 to 0 where all differences are 0.
        """
        _, low, high = mean_interval(self.by_problem)
        return max(-1.0, min(low, self.solved.interval[0])), min(1.0, max(high, self.solved.interval[1]))

    @property
    def worse(self) -> bool:
        """Whether the approximate rollouts have a significantly lower accuracy: the 95 % interval lies below 0."""
        return self.interval[1] < 0

    def metrics(self) -> dict[str, float]:
        """The metrics of a run (docs/metrics.md)."""
        return {
            "approximate/tokens": self.tokens,
            "approximate/accuracy": self.solved.difference,
            "approximate/distinct": self.distinct[1] - self.distinct[0],
            "approximate/nfe": self.nfe[0],
        }

    def __str__(self) -> str:
        low, high = self.interval
        pairs = self.solved
        return (
            f"{self.tokens:.1%} of tokens equal; solved {pairs.both + pairs.second} instead of "
            f"{pairs.both + pairs.first} of {pairs.total} ({pairs.difference:+.1%}, 95 % {low:+.1%} to {high:+.1%}); "
            f"{self.distinct[1]:.0%} instead of {self.distinct[0]:.0%} of a group's texts distinct; "
            f"{self.nfe[1]:,} instead of {self.nfe[0]:,} model calls"
        )


def compute_agreement(
    exact: tuple[Rollouts, RewardBatch], approximate: tuple[Rollouts, RewardBatch], num_generations: int
) -> Agreement:
    """Compares row by row; rows of a group are adjacent."""
    (exact_rollouts, exact_rewards), (rollouts, rewards) = exact, approximate
    either_mask = exact_rollouts.completion_mask | rollouts.completion_mask
    pairs = list(zip(exact_rewards.correct.tolist(), rewards.correct.tolist(), strict=True))
    difference = rewards.correct.float() - exact_rewards.correct.float()
    return Agreement(
        float((exact_rollouts.completion_ids == rollouts.completion_ids)[either_mask].float().mean()),
        Paired(*(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))),
        (_frac_distinct(exact_rewards.texts, num_generations), _frac_distinct(rewards.texts, num_generations)),
        (int(exact_rollouts.nfe.sum()), int(rollouts.nfe.sum())),
        tuple(difference.view(-1, num_generations).mean(1).tolist()),
    )


def measure_agreement(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: SemiAutoregressiveSampler,
    num_generations: int,
    batch_size: int,
) -> Agreement:
    """Samples each problem `num_generations` times, exactly and with the sampler's approximations, same noise."""
    prompts = policy.encode([p.messages for p in problems]).repeat(num_generations)
    noise = sampler.sample_noise(len(problems) * num_generations, make_generator(0, 0, "agreement"))
    results = []
    for variant in (sampler.exact(), sampler):
        rollouts = variant(policy, prompts, noise, max_batch_size=batch_size)
        results.append((rollouts, grade_responses(policy, task, problems, rollouts)))
    return compute_agreement(results[0], results[1], num_generations)


def approximations(sampler: SemiAutoregressiveSampler) -> dict[str, SemiAutoregressiveSampler]:
    """A sampler with each approximation alone, and `both` if there are two."""
    exact, samplers = sampler.exact(), {}
    if sampler.confidence_threshold is not None:
        name = f"parallel {sampler.confidence_threshold:g}"
        samplers[name] = replace(exact, confidence_threshold=sampler.confidence_threshold)
    if sampler.cache is not None and sampler.cache != exact.cache:
        samplers[f"{sampler.cache.kind} cache"] = replace(exact, cache=sampler.cache)
    return samplers if len(samplers) < 2 else {**samplers, "both": sampler}


def _frac_distinct(texts: Sequence[str], num_generations: int) -> float:
    groups = [texts[start : start + num_generations] for start in range(0, len(texts), num_generations)]
    return sum(len(set(group)) for group in groups) / len(texts)
