"""From finished responses to text, and from text to rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.errors import RewardError
from stipule.tasks.problem import BatchGrader, Grade, Problem, Task


@dataclass(frozen=True)
class Graded:
    """Texts and what they are worth, row by row."""

    texts: list[str]
    grades: list[Grade]
    reward: Float[Tensor, " B"]
    correct: Bool[Tensor, " B"]


def grade(task: Task, problems: Sequence[Problem], texts: Sequence[str]) -> Graded:
    """Grades row by row. A grader that raises stops the run: a silent 0 would be trained on.

    Raises RewardError if a reward is not a finite number.
    """
    if isinstance(task, BatchGrader) and texts:
        grades = task.grade_all(problems, texts)
    else:
        grades = [task.grade(problem, text) for problem, text in zip(problems, texts, strict=True)]
    reward = torch.tensor([g.reward for g in grades], dtype=torch.float32)
    if not bool(reward.isfinite().all()):
        row = int((~reward.isfinite()).nonzero()[0])
        raise RewardError(
            f"the reward of {problems[row].key!r} is {grades[row].reward}; rewards must be finite numbers; "
            f"the response was {texts[row]!r}"
        )
    return Graded(list(texts), grades, reward, torch.tensor([g.correct for g in grades], dtype=torch.bool))


def join_graded(parts: Sequence[Graded]) -> Graded:
    """The rows of several batches, in order."""
    if len(parts) == 1:
        return parts[0]
    return Graded(
        [text for part in parts for text in part.texts],
        [one for part in parts for one in part.grades],
        torch.cat([part.reward for part in parts]),
        torch.cat([part.correct for part in parts]),
    )
