"""What approximate rollouts have in common with exact ones from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stipule.evaluation.statistics import Paired, mean_interval
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator
from stipule.rollouts.reward_batch import RewardBatch, compute_rewards
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Problem, Task
from stipule.types import Rollouts


@dataclass(frozen=True)
class Agreement:
    """Of the same rows, first exact, then approximate."""

    tokens: float  # share of positions, live in either response, at which the tokens are equal
    solved: Paired
    distinct: tuple[float, float]  # mean share of a group's texts that differ from one another
    nfe: tuple[int, int]  # rows x model calls; a partial call counts as one
    by_problem: tuple[float, ...]  # difference in the solved share of each group

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference in solve rate: the wider of that over rows and that over problems.

        Responses to one problem are alike, so rows alone would be too sure; problems alone say 0 to 0 where all agree.
        """
        _, low, high = mean_interval(self.by_problem)
        return max(-1.0, min(low, self.solved.interval[0])), min(1.0, max(high, self.solved.interval[1]))

    @property
    def worse(self) -> bool:
        """Whether the approximate rollouts solve fewer beyond chance: the 95 % interval lies below 0."""
        return self.interval[1] < 0

    def metrics(self) -> dict[str, float]:
        """What a run logs of it (docs/metrics.md)."""
        return {
            "approximate/tokens": self.tokens,
            "approximate/accuracy": self.solved.difference,
            "approximate/distinct": self.distinct[1] - self.distinct[0],
            "approximate/nfe": self.nfe[0],
        }

    def __str__(self) -> str:
        low, high = self.interval
        found = self.solved
        return (
            f"{self.tokens:.1%} of tokens equal; solved {found.both + found.second} instead of "
            f"{found.both + found.first} of {found.total} ({found.difference:+.1%}, 95 % {low:+.1%} to {high:+.1%}); "
            f"{self.distinct[1]:.0%} instead of {self.distinct[0]:.0%} of a group's texts distinct; "
            f"{self.nfe[1]:,} instead of {self.nfe[0]:,} model calls"
        )


def agreement(exact: tuple[Rollouts, RewardBatch], found: tuple[Rollouts, RewardBatch], group: int) -> Agreement:
    """Compares row by row; rows of a group side by side."""
    (one, graded), (other, again) = exact, found
    either = one.completion_mask | other.completion_mask
    pairs = list(zip(graded.correct.tolist(), again.correct.tolist(), strict=True))
    return Agreement(
        float((one.completion_ids == other.completion_ids)[either].float().mean()),
        Paired(*(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))),
        (_distinct(graded.texts, group), _distinct(again.texts, group)),
        (int(one.nfe.sum()), int(other.nfe.sum())),
        tuple((again.correct.float() - graded.correct.float()).view(-1, group).mean(1).tolist()),
    )


def measured_agreement(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: SemiAutoregressiveSampler,
    group: int,
    rows: int,
) -> Agreement:
    """Rolls every problem out `group` times with the sampler and without its approximations, from the same noise."""
    repeated = [problem for problem in problems for _ in range(group)]
    prompts = policy.encode([p.messages for p in problems]).repeat(group)
    noise = sampler.sample_noise(len(repeated), make_generator(0, 0, "agreement"))
    sides = []
    for side in (sampler.exact(), sampler):
        responses = side(policy, prompts, noise, max_batch_size=rows)
        sides.append((responses, compute_rewards(task, repeated, policy.decode(responses.completion_ids))))
    return agreement(sides[0], sides[1], group)


def approximations(sampler: SemiAutoregressiveSampler) -> dict[str, SemiAutoregressiveSampler]:
    """The sampler's approximations one by one, and together where it has both."""
    exact, found = sampler.exact(), {}
    if sampler.confidence_threshold is not None:
        found[f"parallel {sampler.confidence_threshold:g}"] = replace(
            exact, confidence_threshold=sampler.confidence_threshold
        )
    if sampler.cache is not None:
        found[f"{sampler.cache.kind} cache"] = replace(exact, cache=sampler.cache)
    return found if len(found) < 2 else {**found, "both": sampler}


def _distinct(texts: Sequence[str], group: int) -> float:
    groups = [texts[start : start + group] for start in range(0, len(texts), group)]
    return sum(len(set(one)) for one in groups) / len(texts)
