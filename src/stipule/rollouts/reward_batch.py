"""The rewards of a batch of response texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.errors import RewardError
from stipule.models.masked_policy import MaskedPolicy
from stipule.tasks.problem import BatchGrader, Grade, Problem, RewardContext, Task
from stipule.types import Rollouts


@dataclass(frozen=True)
class RewardBatch:
    """Texts with their grades and rewards, row by row, and what reward functions have logged."""

    texts: list[str]
    grades: list[Grade]
    rewards: Float[Tensor, " B"]
    correct: Bool[Tensor, " B"]
    metrics: dict[str, list[float]] = field(default_factory=dict)  # log_metric: the values of all calls
    columns: dict[str, list[Any]] = field(default_factory=dict)  # log_extra: one value per row

    @staticmethod
    def concatenate(batches: Sequence[RewardBatch]) -> RewardBatch:
        """The rows of several batches in order."""
        if len(batches) == 1:
            return batches[0]
        return RewardBatch(
            [text for batch in batches for text in batch.texts],
            [grade for batch in batches for grade in batch.grades],
            torch.cat([batch.rewards for batch in batches]),
            torch.cat([batch.correct for batch in batches]),
            {
                name: [value for batch in batches for value in batch.metrics.get(name, [])]
                for name in sorted({name for batch in batches for name in batch.metrics})
            },
            {
                name: [v for batch in batches for v in batch.columns.get(name, [None] * len(batch.texts))]
                for name in sorted({name for batch in batches for name in batch.columns})
            },
        )


def token_lists(rollouts: Rollouts) -> list[list[int]]:
    """The tokens of each response, up to and including the first end-of-text token."""
    lengths = rollouts.completion_mask.sum(1).tolist()
    return [ids[:length] for ids, length in zip(rollouts.completion_ids.tolist(), lengths, strict=True)]


def compute_rewards(
    task: Task,
    problems: Sequence[Problem],
    texts: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    trainer_state: Any = None,
) -> RewardBatch:
    """Grades each text. A grader that raises stops the run: a silent 0 would be trained on.

    Reward functions get `completion_ids` (`token_lists`) and `trainer_state`, a `transformers.TrainerState`; outside
    of training it is that of step 0. Raises RewardError if a reward is not a finite number.
    """
    context = RewardContext(completion_ids, trainer_state)
    if isinstance(task, BatchGrader) and texts:
        if trainer_state is None:
            from transformers import TrainerState  # slow to import, and only reward functions read it

            context.trainer_state = TrainerState()
        grades = task.grade_all(problems, texts, context)
    else:
        grades = [task.grade(problem, text) for problem, text in zip(problems, texts, strict=True)]
    rewards = torch.tensor([g.reward for g in grades], dtype=torch.float32)
    if not bool(rewards.isfinite().all()):
        row = int((~rewards.isfinite()).nonzero()[0])
        raise RewardError(
            f"the reward of {problems[row].key!r} is {grades[row].reward}; rewards must be finite numbers; "
            f"the response was {texts[row]!r}"
        )
    correct = torch.tensor([g.correct for g in grades], dtype=torch.bool)
    return RewardBatch(list(texts), grades, rewards, correct, context.metrics, context.columns)


def grade_responses(policy: MaskedPolicy, task: Task, problems: Sequence[Problem], rollouts: Rollouts) -> RewardBatch:
    """The rewards of all rows, outside of training. Each problem has the same number of rows, which are adjacent.

    Raises RewardError if a reward is not a finite number.
    """
    num_generations = len(rollouts) // len(problems)
    repeated = [problem for problem in problems for _ in range(num_generations)]
    return compute_rewards(task, repeated, policy.decode(rollouts.completion_ids), token_lists(rollouts))
