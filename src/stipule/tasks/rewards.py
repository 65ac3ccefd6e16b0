"""Reward functions in TRL's convention: `reward(prompts, completions, **columns) -> list[float | None]`."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stipule.errors import RecipeError, StipuleError
from stipule.tasks.problem import Grade, Problem


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Reward functions of your own, in place of the task's reward.

    Each is called once per batch with `prompts` and `completions` (strings, or lists of chat messages if the prompts
    are), and every column of the dataset by name. It returns a number, or None (does not apply), for each completion.
    The reward is the weighted sum of the values that apply. A response is correct if the first function returns at
    least `correct_at`.
    """

    functions: tuple[str, ...]  # package.module:function, sync or async
    weights: tuple[float, ...] | None = None  # one per function; null: 1 each
    correct_at: float = 1.0

    def __post_init__(self) -> None:
        if not self.functions or any(len(name.split(":")) != 2 or not all(name.split(":")) for name in self.functions):
            raise RecipeError(
                f"reward.functions is {list(self.functions)}; each must be package.module:function, e.g. "
                "my_rewards:accuracy"
            )
        if self.weights is not None and len(self.weights) != len(self.functions):
            raise RecipeError(
                f"reward.weights has {len(self.weights)} numbers for {len(self.functions)} functions; give one each"
            )

    def load(self) -> tuple[Callable[..., Any], ...]:
        """Import the functions. Raises RecipeError, with the cause, if one cannot be imported."""
        return tuple(map(_load, self.functions))


def _load(name: str) -> Callable[..., Any]:
    module, attribute = name.split(":")
    if os.getcwd() not in sys.path:  # `python -m` also adds the working directory
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as cause:
        raise RecipeError(
            f"the reward {name!r} cannot be imported: {cause}; it must be a function in a module that Python can "
            "import from the working directory"
        ) from cause
    if not callable(function):
        raise RecipeError(f"the reward {name!r} is {type(function).__name__}; it must be a function; correct the name")
    return function


def reward_grades(reward: Reward, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
    """Compute grades with the reward functions; the parts have their names.

    An exception in a function stops the run, because a silent reward of 0 would be trained on. Raises StipuleError if
    a function returns the wrong number of rewards or if no function applies to a response.
    """
    prompts = [list(problem.conversation) if problem.conversation else problem.prompt for problem in problems]
    completions: list[Any] = [
        [{"role": "assistant", "content": text}] if problem.conversation else text
        for problem, text in zip(problems, texts, strict=True)
    ]
    column_names = {key for problem in problems for key in problem.data}
    columns = {name: [problem.data.get(name) for problem in problems] for name in column_names}
    weights = reward.weights or (1.0,) * len(reward.functions)
    rewards_per_function: list[list[float | None]] = []
    for name, function in zip(reward.functions, reward.load(), strict=True):
        values = function(prompts=prompts, completions=completions, **columns)
        if inspect.isawaitable(values):
            values = asyncio.run(_awaited(values))
        if len(values) != len(texts):
            raise StipuleError(f"the reward {name!r} returned {len(values)} rewards for {len(texts)} completions")
        rewards_per_function.append([None if value is None else float(value) for value in values])
    grades = []
    part_names = [name.split(":")[1] for name in reward.functions]
    for problem, row in zip(problems, zip(*rewards_per_function, strict=True), strict=True):
        weighted = [weight * value for weight, value in zip(weights, row, strict=True) if value is not None]
        if not weighted:
            raise StipuleError(f"no reward function applies to a response to {problem.key!r}: all returned None")
        parts = {name: 0.0 if value is None else value for name, value in zip(part_names, row, strict=True)}
        grades.append(Grade(sum(weighted), parts, row[0] is not None and row[0] >= reward.correct_at))
    return grades


async def _awaited(values: Any) -> Any:
    return await values
