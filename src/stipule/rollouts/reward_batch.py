"""The rewards of a batch of response texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.errors import RewardError
from stipule.tasks.problem import BatchGrader, Grade, Problem, Task


@dataclass(frozen=True)
class RewardBatch:
    """Texts with their grades and rewards, row by row."""

    texts: list[str]
    grades: list[Grade]
    rewards: Float[Tensor, " B"]
    correct: Bool[Tensor, " B"]

    @staticmethod
    def concatenate(batches: Sequence[RewardBatch]) -> RewardBatch:
        """The rows of several batches in order."""
        if len(batches) == 1:
            return batches[0]
        return RewardBatch(
            [text for batch in batches for text in batch.texts],
            [compute_rewards for batch in batches for compute_rewards in batch.grades],
            torch.cat([batch.rewards for batch in batches]),
            torch.cat([batch.correct for batch in batches]),
        )


def compute_rewards(task: Task, problems: Sequence[Problem], texts: Sequence[str]) -> RewardBatch:
    """Grades each text. A grader that raises stops the run: a silent 0 would be trained on.

    Raises RewardError if a reward is not a finite number.
    """
    if isinstance(task, BatchGrader) and texts:
        grades = task.grade_all(problems, texts)
    else:
        grades = [task.grade(problem, text) for problem, text in zip(problems, texts, strict=True)]
    rewards = torch.tensor([g.reward for g in grades], dtype=torch.float32)
    if not bool(rewards.isfinite().all()):
        row = int((~rewards.isfinite()).nonzero()[0])
        raise RewardError(
            f"the reward of {problems[row].key!r} is {grades[row].reward}; rewards must be finite numbers; "
            f"the response was {texts[row]!r}"
        )
    return RewardBatch(list(texts), grades, rewards, torch.tensor([g.correct for g in grades], dtype=torch.bool))
