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
    """Functions that take the place of the task's own reward.

    Each is called once a batch with `prompts` and `completions` (strings, or lists of chat messages where the prompts
    are), and every column of the dataset by name; it returns a number or None (does not apply) for each completion.
    The reward is the weighted sum of what applies. A response is right where the first function reaches `correct_at`.
    """

    functions: tuple[str, ...]  # package.module:function, sync or async
    weights: tuple[float, ...] | None = None  # None: 1 each
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
        """The functions. Raises RecipeError if one cannot be imported, with the cause."""
        return tuple(map(_load, self.functions))


def _load(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    if os.getcwd() not in sys.path:  # as `python -m` would have it
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as cause:
        raise RecipeError(
            f"the reward {name!r} cannot be imported: {cause}; it must be a function in a module that Python finds "
            "from here"
        ) from cause
    if not callable(found):
        raise RecipeError(f"the reward {name!r} is {type(found).__name__}, not a function")
    return found


def reward_grades(reward: Reward, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
    """Grades by the functions; parts carry their names.

    A function that raises stops the run: a silent 0 would be trained on. Raises StipuleError where a function returns
    the wrong number of rewards or where none applies to a response.
    """
    prompts = [list(problem.conversation) if problem.conversation else problem.prompt for problem in problems]
    completions: list[Any] = [
        [{"role": "assistant", "content": text}] if problem.conversation else text
        for problem, text in zip(problems, texts, strict=True)
    ]
    names = {key for problem in problems for key in problem.data}
    columns = {name: [problem.data.get(name) for problem in problems] for name in names}
    weights = reward.weights or (1.0,) * len(reward.functions)
    found: list[list[float | None]] = []
    for name, function in zip(reward.functions, reward.load(), strict=True):
        values = function(prompts=prompts, completions=completions, **columns)
        if inspect.isawaitable(values):
            values = asyncio.run(_awaited(values))
        if len(values) != len(texts):
            raise StipuleError(f"the reward {name!r} returned {len(values)} rewards for {len(texts)} completions")
        found.append([None if value is None else float(value) for value in values])
    grades = []
    short = [name.split(":")[1] for name in reward.functions]
    for problem, row in zip(problems, zip(*found, strict=True), strict=True):
        applying = [w * value for w, value in zip(weights, row, strict=True) if value is not None]
        if not applying:
            raise StipuleError(f"no reward function applies to a response to {problem.key!r}: all returned None")
        parts = {name: 0.0 if value is None else value for name, value in zip(short, row, strict=True)}
        grades.append(Grade(sum(applying), parts, row[0] is not None and row[0] >= reward.correct_at))
    return grades


async def _awaited(values: Any) -> Any:
    return await values
