"""Reward functions in TRL's convention: `reward(prompts, completions, **columns) -> list[float | None]`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stipule.errors import RecipeError, StipuleError
from stipule.object_import import FORMS, import_object, is_reference
from stipule.tasks.problem import Grade, Problem, RewardContext

ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""The arguments that a function gets besides the columns of the dataset, as in TRL."""

_METRICS = ("mean", "accuracy", "frac_nonzero_std")  # reward/NAME is another metric (training/records.py)


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Reward functions of your own, in place of the task's reward.

    Each is called once per batch with the arguments of TRL that it names (docs/rewards.md): `prompts` and
    `completions` (strings, or lists of chat messages if the prompts are), `completion_ids`, `trainer_state`,
    `log_metric`, `log_extra`, and every column of the dataset. It returns a number, or None (does not apply), for each
    completion. The reward is the weighted sum of the values that apply. A response is correct if the first function
    returns at least `correct_at`.
    """

    functions: tuple[str, ...]  # package.module:function or path/to/file.py:function, sync or async
    weights: tuple[float, ...] | None = None  # one per function; null: 1 each
    correct_at: float = 1.0

    def __post_init__(self) -> None:
        if not self.functions or not all(map(is_reference, self.functions)):
            raise RecipeError(
                f"reward.functions is {list(self.functions)}; each must be {FORMS}, e.g. my_rewards:accuracy"
            )
        if len(set(self.functions)) < len(self.functions):
            raise RecipeError(
                f"reward.functions is {list(self.functions)}, which names a function twice; name it once, with a "
                "weight of 2 in reward.weights"
            )
        if self.weights is not None and len(self.weights) != len(self.functions):
            raise RecipeError(
                f"reward.weights has {len(self.weights)} numbers for {len(self.functions)} functions; give one each"
            )

    @property
    def part_names(self) -> tuple[str, ...]:
        """The function's name; with its module where another function or another metric has this name."""
        sources, names = zip(*(name.split(":") for name in self.functions), strict=True)
        modules = [Path(source).stem if source.endswith(".py") else source for source in sources]
        return tuple(
            f"{module}.{name}" if names.count(name) > 1 or name in _METRICS else name
            for module, name in zip(modules, names, strict=True)
        )

    def load(self) -> tuple[Callable[..., Any], ...]:
        """Import the functions. Raises RecipeError, with the cause, if one cannot be imported."""
        return tuple(map(_load, self.functions))

    def check(self, columns: Collection[str]) -> None:
        """Raises RecipeError for a function that cannot be imported or needs an argument that it will not get."""
        for name, function in zip(self.functions, self.load(), strict=True):
            parameters, _ = _parameters(function)
            missing = [p.name for p in parameters if p.default is p.empty and p.name not in {*ARGUMENTS, *columns}]
            if missing:
                raise RecipeError(
                    f"the reward {name!r} needs {', '.join(missing)}; it gets {', '.join(ARGUMENTS)} and the columns "
                    f"of the dataset ({', '.join(columns) or 'none'}); add the column, or give the argument a default"
                )


def _load(name: str) -> Callable[..., Any]:
    function = import_object(name, "reward.functions")
    if not callable(function):
        raise RecipeError(f"the reward {name!r} is {type(function).__name__}; it must be a function; correct the name")
    return function


def _parameters(function: Callable[..., Any]) -> tuple[list[inspect.Parameter], bool]:
    """The named parameters, and whether the function takes any other argument as well."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # built in, without a signature
        return [], True
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def reward_grades(
    reward: Reward, problems: Sequence[Problem], texts: Sequence[str], context: RewardContext
) -> list[Grade]:
    """Compute grades with the reward functions; the parts have their names.

    An exception in a function stops the run, because a silent reward of 0 would be trained on. Raises StipuleError if
    a function does not return a number for each response or if no function applies to one.
    """
    values_per_function = _call_all(reward.load(), _arguments(problems, texts, context), len(texts))
    weights = reward.weights or (1.0,) * len(reward.functions)
    for name, values in zip(reward.functions, values_per_function, strict=True):
        _check_values(name, values, len(texts))
    grades = []
    for problem, row in zip(problems, zip(*values_per_function, strict=True), strict=True):
        values = [None if value is None else float(value) for value in row]
        weighted = [weight * value for weight, value in zip(weights, values, strict=True) if value is not None]
        if not weighted:
            raise StipuleError(f"no reward function applies to a response to {problem.key!r}: all returned None")
        parts = {name: value for name, value in zip(reward.part_names, values, strict=True) if value is not None}
        grades.append(Grade(sum(weighted), parts, values[0] is not None and values[0] >= reward.correct_at))
    return grades


def _check_values(name: str, values: Any, count: int) -> None:
    """Raises StipuleError unless there is a number, or None, for each completion."""
    if not hasattr(values, "__len__") or isinstance(values, str):
        raise StipuleError(f"the reward {name!r} returned {values!r}; it must return a list, a number per completion")
    if len(values) != count:
        raise StipuleError(f"the reward {name!r} returned {len(values)} rewards for {count} completions; give one each")
    for value in values:
        if value is not None and not hasattr(value, "__float__"):  # numpy's and torch's numbers have it, texts do not
            raise StipuleError(f"the reward {name!r} returned {value!r}; a reward is a number, or None if none applies")


def _arguments(problems: Sequence[Problem], texts: Sequence[str], context: RewardContext) -> dict[str, Any]:
    """All arguments by name. A column that a row does not have is None there."""
    columns = {name: [problem.data.get(name) for problem in problems] for p in problems for name in p.data}
    completions = [
        [{"role": "assistant", "content": text}] if problem.conversation else text
        for problem, text in zip(problems, texts, strict=True)
    ]
    return columns | {
        "prompts": [list(problem.conversation) if problem.conversation else problem.prompt for problem in problems],
        "completions": completions,
        "completion_ids": [list(ids) for ids in context.completion_ids],
        "trainer_state": context.trainer_state,
        "log_extra": context.log_extra,
        "log_metric": context.log_metric,
    }


def _call_all(functions: Sequence[Callable[..., Any]], arguments: dict[str, Any], count: int) -> list[Any]:
    """What each function returns. Async functions run at the same time, after the others."""
    results: dict[int, Any] = {}
    waiting: dict[int, Coroutine[Any, Any, Any]] = {}
    for index, function in enumerate(functions):
        parameters, takes_all = _parameters(function)
        names = {p.name for p in parameters}
        chosen = {name: value for name, value in arguments.items() if takes_all or name in names}
        # A column of the other split only.
        chosen |= {p.name: [None] * count for p in parameters if p.default is p.empty and p.name not in arguments}
        if _is_async(function):
            waiting[index] = _call(function, chosen)
            continue
        results[index] = function(**chosen)
        if inspect.isawaitable(results[index]):
            waiting[index] = _await(results.pop(index))
    if waiting:
        values = asyncio.run_coroutine_threadsafe(_gather(list(waiting.values())), _event_loop(os.getpid())).result()
        results |= dict(zip(waiting, values, strict=True))
    return [results[index] for index in range(len(functions))]


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return await function(**arguments)


async def _await(values: Any) -> Any:
    return await values


async def _gather(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*coroutines)


@functools.cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """One loop for all calls of a process: a client or a semaphore belongs to the loop in which it is first used.

    A forked process has no thread of its parent, so it gets its own.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop
