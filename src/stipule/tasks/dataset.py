"""Problems of a task from dataset files: read once, without repetitions, and without overlap of train and test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from stipule.errors import RecipeError
from stipule.tasks.dataset_io import read_rows
from stipule.tasks.problem import Problem

Reader = Callable[[str, Any], Problem | None]
"""(location, row) to a problem; None for a row to skip; RecipeError for a row that cannot be read."""


def read_problems(source: str, read: Reader, count: int | None = None) -> tuple[Problem, ...]:
    """The first `count` problems of a source.

    Exact repetitions are skipped. Raises RecipeError, with file and line, where a problem is repeated with another
    answer, and if the source has no problem.
    """
    problems: dict[str, Problem] = {}
    for location, row in read_rows(source):
        problem = read(location, row)
        if problem is None:
            continue
        earlier = problems.setdefault(problem.key, problem)
        if earlier.data.get("gold") != problem.data.get("gold"):
            raise RecipeError(f"{location} repeats an earlier problem with another answer; keep one of them")
        if len(problems) == count:
            break
    if not problems:
        raise RecipeError(f"{source} contains no problem of this task; give another file")
    return tuple(problems.values())


def check_no_overlap(train: Sequence[Problem], test: Sequence[Problem], sources: str) -> None:
    """Raises RecipeError if a problem is in both splits."""
    overlap = {p.key for p in train} & {p.key for p in test}
    if overlap:
        raise RecipeError(
            f"{sources} share {len(overlap)} problems, e.g. {min(overlap)!r}, which would be trained on and tested; "
            "remove them from one of the two"
        )


@lru_cache(maxsize=8)
def split_problems(read: Reader, train: str, test: str, split: str, count: int | None) -> tuple[Problem, ...]:
    """The problems of one split, from the sources of both.

    The splits are compared when "train" is read, so that an evaluation needs no training data.
    """
    if split == "test":
        return read_problems(test, read, count)
    problems = read_problems(train, read)
    check_no_overlap(problems, read_problems(test, read), f"task.train {train!r} and task.test {test!r}")
    return problems[:count]
