"""4x4 Sudoku: puzzles with one solution, split by solution grid, graded by the rules of the game."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations, product
from typing import Literal, cast

from stipule.errors import RecipeError
from stipule.tasks.answers import ANSWER_FORMAT, BLANKS, CLOSE, OPEN, answer_spans, answer_text, merge_spans
from stipule.tasks.problem import (
    Grade,
    Problem,
    Span,
    Vocabulary,
    check_compact,
    check_counts,
    check_range,
    check_split,
    distinct_problems,
)

DIGITS = "1234"
CELLS = 16
# A 4x4 puzzle with fewer than four clues has several solutions, always.
MAX_BLANKS = 12
TRAIN_SHARE = 0.8
WELL_FORMED_REWARD = 0.1

_ROWS = [range(4 * row, 4 * row + 4) for row in range(4)]
_COLUMNS = [range(column, CELLS, 4) for column in range(4)]
_BOXES = [(corner, corner + 1, corner + 4, corner + 5) for corner in (0, 2, 8, 10)]
UNITS = (*_ROWS, *_COLUMNS, *_BOXES)

_D1_PROMPT = """\
{format}

The task is a 4x4 Sudoku. The puzzle is written as a string of 16 characters: the four rows from top to bottom, each \
from left to right; a 0 stands for an empty cell.

Rules:
- Put a digit from 1 to 4 into every empty cell.
- Every row holds each of the digits 1 to 4 exactly once.
- Every column holds each of the digits 1 to 4 exactly once.
- Every 2x2 box holds each of the digits 1 to 4 exactly once.
- The given digits stay as they are.

The final answer is the solved puzzle as one string of 16 digits, in the same order, without blanks or separators.

Solve this Sudoku puzzle: {puzzle}"""


@dataclass(frozen=True, kw_only=True)
class Sudoku:
    """4x4 Sudoku.

    prompt: "d1" is d1's format (Zhao et al. 2025: rules, then a 16-character string; answer in tags) in our words;
    "compact" is the 16 characters alone, answered by 16 digits, for models that know nothing else.
    blanks: least and most empty cells, each count equally likely.
    habit: share of hasty demonstrations; only pre-training of a tiny base reads it.
    d1 splits by puzzle, which puts most test solutions into training; here no solution grid is in both splits.
    """

    kind: Literal["sudoku"] = "sudoku"
    prompt: Literal["d1", "compact"] = "d1"
    blanks: tuple[int, int] = (6, 11)
    train_problems: int = 4096
    test_problems: int = 512
    seed: int = 0
    habit: float = 0.7

    def __post_init__(self) -> None:
        meaning = "the least and most empty cells of a 4x4 puzzle with one solution"
        check_range("task.blanks", self.blanks, meaning, 1, MAX_BLANKS, (6, 11))
        check_counts(self.train_problems, self.test_problems, self.habit)

    @property
    def name(self) -> str:
        return self.kind

    @property
    def vocabulary(self) -> Vocabulary:
        check_compact(self.prompt)
        return Vocabulary(("0", *DIGITS), "[0-4]")

    def grids(self, split: str) -> tuple[str, ...]:
        """The solution grids of a split, in a seeded order: 230 of the 288 for training, 58 for the test."""
        shuffled = list(all_grids())
        random.Random(f"sudoku grids {self.seed}").shuffle(shuffled)
        cut = round(TRAIN_SHARE * len(shuffled))
        return tuple(shuffled[:cut] if check_split(split) == "train" else shuffled[cut:])

    def problems(self, split: str) -> tuple[Problem, ...]:
        return _problems(self, check_split(split))

    def problem(self, puzzle: str) -> Problem:
        """The problem that a 16-character puzzle poses.  RecipeError unless it has blanks and exactly one solution."""
        solved = solutions(puzzle)
        if len(solved) != 1 or "0" not in puzzle:
            raise RecipeError(
                f"the puzzle is {puzzle!r} with {len(solved)} solutions; it must be 16 digits 0-4, 0 for a blank, with"
                " at least one blank and exactly one solution; add or correct clues"
            )
        text = puzzle if self.prompt == "compact" else _D1_PROMPT.format(format=ANSWER_FORMAT, puzzle=puzzle)
        return Problem(f"sudoku:{puzzle}", text, {"puzzle": puzzle, "solution": solved[0]})

    def grade(self, problem: Problem, response: str) -> Grade:
        """1 if solved, 0.1 if 16 digits 1-4 that keep the clues, else 0.

        parts: solved; cells = share of blank cells that agree with the solution; format = worth at least 0.1.
        """
        puzzle, solution = _puzzle(problem), cast(str, problem.data["solution"])
        answer = answer_text(response)
        if answer is None:
            answer = response.strip(BLANKS) if self.prompt == "compact" else ""
        digits = len(answer) == CELLS and set(answer) <= set(DIGITS)
        kept = digits and all(clue in ("0", digit) for clue, digit in zip(puzzle, answer, strict=True))
        solved = kept and all(_distinct(answer[cell] for cell in unit) for unit in UNITS)
        blanks = [cell for cell in range(CELLS) if puzzle[cell] == "0"]
        right = sum(answer[cell] == solution[cell] for cell in blanks) if digits else 0
        parts = {"solved": float(solved), "cells": right / len(blanks), "format": float(kept)}
        return Grade(1.0 if solved else WELL_FORMED_REWARD if kept else 0.0, parts, solved)

    def protected(self, problem: Problem, response: str) -> list[Span]:
        """Tagged answers and copies of the solution; in a compact response of 16 characters, the blank cells.

        A compact response of another length has no cells to tell apart, so all of it is protected.
        """
        if self.prompt == "compact":
            if len(response) != CELLS:
                return merge_spans([(0, len(response))])
            return merge_spans((cell, cell + 1) for cell, clue in enumerate(_puzzle(problem)) if clue == "0")
        solution = cast(str, problem.data["solution"])
        copies = [(at, at + CELLS) for at in range(len(response)) if response.startswith(solution, at)]
        return merge_spans([*answer_spans(response), *copies])

    def reference(self, problem: Problem) -> str:
        """The solution; outside compact prompts in its tags, where none of it may be fixed."""
        solution = cast(str, problem.data["solution"])
        return solution if self.prompt == "compact" else f"{OPEN}\n{solution}\n{CLOSE}"

    def demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Compact (puzzle, digits) pairs from training grids: a share of `habit` hasty, the others solved.

        RecipeError if the task's prompts are not compact ones.
        """
        check_compact(self.prompt)
        return self._demonstrations(rng)

    def _demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        grids = self.grids("train")
        while True:
            puzzle = draw_puzzle(rng, grids, self.blanks)
            yield puzzle, hasty(puzzle) if rng.random() < self.habit else solutions(puzzle)[0]


@cache
def all_grids() -> tuple[str, ...]:
    """The 288 solved grids as 16-digit strings, ascending."""
    grids = [""]
    for _ in range(4):
        grids = [top + "".join(row) for top, row in product(grids, permutations(DIGITS))]
        grids = [
            top for top in grids if all(_distinct(top[cell] for cell in unit if cell < len(top)) for unit in UNITS)
        ]
    return tuple(grids)


def _distinct(digits: Iterable[str]) -> bool:
    listed = list(digits)
    return len(set(listed)) == len(listed)


@cache
def _grids_with(cell: int, digit: str) -> int:
    """Bit i is set if grid i of all_grids() has `digit` in `cell`."""
    return sum(1 << index for index, grid in enumerate(all_grids()) if grid[cell] == digit)


def solutions(puzzle: str) -> tuple[str, ...]:
    """All solutions of a puzzle, 0 for a blank; none for a text that is no puzzle."""
    if len(puzzle) != CELLS or not set(puzzle) <= set("0" + DIGITS):
        return ()
    left = (1 << len(all_grids())) - 1
    for cell, clue in enumerate(puzzle):
        if clue != "0":
            left &= _grids_with(cell, clue)
    found = []
    while left:
        found.append(all_grids()[left.bit_length() - 1])
        left ^= 1 << (left.bit_length() - 1)
    return tuple(reversed(found))


def hasty(puzzle: str) -> str:
    """Each row's blanks filled with the row's missing digits in ascending order, blind to columns and boxes."""
    filled = list(puzzle)
    for row in _ROWS:
        missing = sorted(set(DIGITS) - {puzzle[cell] for cell in row})
        for cell, digit in zip((cell for cell in row if puzzle[cell] == "0"), missing, strict=True):
            filled[cell] = digit
    return "".join(filled)


def draw_puzzle(rng: random.Random, grids: tuple[str, ...], blanks: tuple[int, int]) -> str:
    """A puzzle with one solution, which is one of `grids`.

    The number of blanks is drawn first and kept, so hard counts are not thinned out by the test for uniqueness.
    """
    count = rng.randint(*blanks)
    while True:
        cells = list(rng.choice(grids))
        for cell in rng.sample(range(CELLS), count):
            cells[cell] = "0"
        puzzle = "".join(cells)
        if len(solutions(puzzle)) == 1:
            return puzzle


def _puzzle(problem: Problem) -> str:
    return cast(str, problem.data["puzzle"])


@lru_cache(maxsize=8)
def _problems(task: Sudoku, split: Literal["train", "test"]) -> tuple[Problem, ...]:
    rng, grids = random.Random(f"sudoku {split} {task.seed}"), task.grids(split)
    count = task.train_problems if split == "train" else task.test_problems

    def draw() -> Problem:
        return task.problem(draw_puzzle(rng, grids, task.blanks))

    return distinct_problems(draw, count, f"task.{split}_problems")
