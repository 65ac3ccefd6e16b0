"""Problems from a dataset of the task's own kind: read once, no problem twice, none both trained on and tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from stipule.errors import RecipeError
from stipule.tasks.dataset_io import read_rows
from stipule.tasks.problem import Problem

Reader = Callable[[str, Any], Problem | None]
"""(where, row) to the problem it poses, None for a row of another kind; RecipeError on what is no such row."""


def read_problems(source: str, read: Reader, count: int | None = None) -> tuple[Problem, ...]:
    """The first `count` problems of a source.

    An exact repetition is passed over. Raises RecipeError, naming file and line, where a problem comes again with
    other data, and where a source holds none.
    """
    found: dict[str, Problem] = {}
    for where, row in read_rows(source):
        problem = read(where, row)
        if problem is None:
            continue
        before = found.setdefault(problem.key, problem)
        if before.data.get("gold") != problem.data.get("gold"):
            raise RecipeError(f"{where} repeats an earlier problem with another answer; keep one of them")
        if len(found) == count:
            break
    if not found:
        raise RecipeError(f"{source} holds no problem of this task; give another file")
    return tuple(found.values())


def refuse_overlap(train: Sequence[Problem], test: Sequence[Problem], sources: str) -> None:
    """Raises RecipeError if a problem is in both splits."""
    both = {p.key for p in train} & {p.key for p in test}
    if both:
        raise RecipeError(
            f"{sources} share {len(both)} problems, e.g. {min(both)!r}, which would be trained on and tested; remove "
            "them from one of the two"
        )


@lru_cache(maxsize=8)
def split_problems(read: Reader, train: str, test: str, split: str, count: int | None) -> tuple[Problem, ...]:
    """The problems of a split of two sources.

    The splits are compared when the training one is read: an evaluation needs no training data.
    """
    if split == "test":
        return read_problems(test, read, count)
    problems = read_problems(train, read)
    refuse_overlap(problems, read_problems(test, read), f"task.train {train!r} and task.test {test!r}")
    return problems[:count]
