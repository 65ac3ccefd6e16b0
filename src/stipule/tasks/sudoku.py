"""4x4 Sudoku: puzzles with one solution, split by solution grid, graded by the rules of the game."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

from stipule.errors import RecipeError
from stipule.tasks.answers import BLANKS, CLOSE, OPEN, answer_spans, merge_spans
from stipule.tasks.boxed import boxed_spans, final_answer
from stipule.tasks.d1_answers import right_cells, sudoku_text
from stipule.tasks.d1_rewards import SUDOKU_WEIGHTS, sudoku_parts
from stipule.tasks.dataset import read_problems, refuse_overlap
from stipule.tasks.dataset_io import get_column
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
from stipule.tasks.prompts import format_prompt, prefill
from stipule.tasks.sudoku_grids import (
    CELLS,
    DIGITS,
    MAX_BLANKS,
    UNITS,
    all_grids,
    distinct,
    draw_puzzle,
    hasty,
    solutions,
)
from stipule.tasks.weights import check_grading, chosen_weights, total

TRAIN_SHARE = 0.8
STRICT_WEIGHTS = {"solved": 0.9, "format": 0.1}
MAX_SHOTS = 3


@dataclass(frozen=True, kw_only=True)
class Sudoku:
    """4x4 Sudoku.

    prompt: "d1" is d1's training format (Zhao et al. 2025: rules, then a 16-character string; answer in tags),
    "d1_eval" that of its evaluation, which starts the response with <reasoning>, "stipule" ours, all in our words
    (tasks/prompts); "compact" is the 16 characters alone, answered by 16 digits, for models that know nothing else.
    grading: "strict" checks rows, columns, boxes and clues; "d1" is the published evaluation's rule, and its training
    reward (docs/grading.md).
    shots: worked examples in the prompt, 3 in SPG's (Wang et al. 2025); their solutions are left out of training.
    train, test: files of JSON lines or CSV with Puzzle and Solution, of which the first train_problems or
    test_problems are taken; None draws puzzles, none of them in the other split's file.
    blanks: least and most empty cells, each count equally likely.
    habit: share of hasty demonstrations; only pre-training of a tiny base reads it.
    anchors: cells of a compact response that spatial pruning may fix: "clues", which repeat the prompt, or "blanks",
    each a part of the answer and so a hint, as tokens of table 4's reference solutions are.
    weights: of the parts; strict: solved 0.9, format 0.1, cells 0; d1: tagged_cells 1.
    d1 splits by puzzle, which puts most test solutions into training; here no solution grid is in both splits
    (that cannot be had beside a file like d1's, which holds 229 of the 288).
    """

    kind: Literal["sudoku"] = "sudoku"
    prompt: Literal["d1", "d1_eval", "stipule", "compact"] = "d1"
    grading: Literal["strict", "d1"] = "strict"
    shots: int = 0
    train: str | None = None
    test: str | None = None
    blanks: tuple[int, int] = (6, 11)
    train_problems: int = 4096
    test_problems: int = 512
    seed: int = 0
    wrong_demo_fraction: float = 0.7
    anchors: Literal["clues", "blanks"] = "clues"
    weights: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_grading(self.grading, self.prompt)
        chosen_weights(self.weights, self._defaults)
        allowed = 0 if self.prompt == "compact" else MAX_SHOTS
        check_range("task.shots", self.shots, "how many worked examples the prompt gives", 0, allowed, allowed)
        meaning = "the least and most empty cells of a 4x4 puzzle with one solution"
        check_range("task.blanks", self.blanks, meaning, 1, MAX_BLANKS, (6, 11))
        check_counts(self.train_problems, self.test_problems, self.wrong_demo_fraction)
        if self.anchors == "blanks" and self.prompt != "compact":
            raise RecipeError(
                f"task.anchors is blanks with task.prompt {self.prompt}, where the answer is protected wherever it "
                "stands; leave task.anchors out, or set task.prompt=compact"
            )

    @property
    def name(self) -> str:
        return self.kind

    @property
    def _defaults(self) -> Mapping[str, float]:
        return SUDOKU_WEIGHTS if self.grading == "d1" else {**STRICT_WEIGHTS, "cells": 0.0}

    @property
    def vocabulary(self) -> Vocabulary:
        check_compact(self.prompt)
        return Vocabulary(("0", *DIGITS), "[0-4]")

    def grids(self, split: str) -> tuple[str, ...]:
        """The solution grids of a split, in a seeded order: 230 of the 288 for training, 58 for the test.

        Those of the examples are in neither.
        """
        shuffled = list(all_grids())
        random.Random(f"sudoku grids {self.seed}").shuffle(shuffled)
        cut = round(TRAIN_SHARE * len(shuffled))
        return tuple(shuffled[self.shots : cut] if check_split(split) == "train" else shuffled[cut:])

    @property
    def examples(self) -> str:
        """The worked examples of the prompt, the same for every problem; empty without shots."""
        if not self.shots:
            return ""
        whole = list(all_grids())
        random.Random(f"sudoku grids {self.seed}").shuffle(whole)
        rng = random.Random(f"sudoku examples {self.seed}")
        shown = [(draw_puzzle(rng, (grid,), self.blanks), grid) for grid in whole[: self.shots]]
        return "".join(f"Sudoku puzzle: {puzzle}\n{OPEN}\n{grid}\n{CLOSE}\n\n" for puzzle, grid in shown)

    def problems(self, split: str) -> tuple[Problem, ...]:
        return _problems(self, check_split(split))

    def problem(self, puzzle: str, solution: str | None = None) -> Problem:
        """The problem that a 16-character puzzle poses.

        RecipeError unless it has blanks and exactly one solution, or this is one of several.
        """
        solved = solutions(puzzle)
        if solution is None and len(solved) == 1:
            solution = solved[0]
        if solution not in solved or "0" not in puzzle:
            given = f" and the solution {solution!r}" if solution else ""
            raise RecipeError(
                f"the puzzle is {puzzle!r} with {len(solved)} solutions{given}; it must be 16 digits 0-4, 0 for a blank"
                ", with at least one blank, and have this or exactly one solution; add or correct clues"
            )
        text = puzzle
        if self.prompt != "compact":
            text = format_prompt(self.kind, self.prompt, puzzle=puzzle, examples=self.examples)
        data = {"puzzle": puzzle, "solution": solution}
        return Problem(f"sudoku:{puzzle}", text, data, prefill=prefill(self.prompt))

    def read(self, where: str, row: Any) -> Problem:
        """The problem of a row; RecipeError if it is none."""
        puzzle, solution = (str(get_column(where, row, name, name.title())) for name in ("puzzle", "solution"))
        try:
            return self.problem(puzzle, solution)
        except RecipeError as cause:
            raise RecipeError(f"{where}: {cause}") from cause

    def grade(self, problem: Problem, response: str) -> Grade:
        """strict: solved; format = 16 digits 1-4 that keep the clues; cells = share of blank cells that agree with the
        solution, of which only digits that are 16 have any.

        So 1 if solved, 0.1 if only well-formed, else 0, with the default weights.
        """
        puzzle, solution = _puzzle(problem), cast(str, problem.data["solution"])
        blanks = puzzle.count("0")
        if self.grading == "d1":
            right = right_cells(sudoku_text(response), puzzle, solution)
            solved = right == blanks
            parts = {
                "correct": float(solved),
                "cells": right / blanks,
                **sudoku_parts(response, puzzle, solution),
            }
        else:
            answer = final_answer(response)
            if answer is None:
                answer = response.strip(BLANKS) if self.prompt == "compact" else ""
            digits = len(answer) == CELLS and set(answer) <= set(DIGITS)
            kept = digits and all(clue in ("0", digit) for clue, digit in zip(puzzle, answer, strict=True))
            solved = kept and all(distinct(answer[cell] for cell in unit) for unit in UNITS)
            right = right_cells(answer, puzzle, solution) if digits else 0
            parts = {"solved": float(solved), "cells": right / blanks, "format": float(kept)}
        return Grade(total(parts, chosen_weights(self.weights, self._defaults)), parts, solved)

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """Tagged answers and copies of the solution; in a compact response, the blank cells or, as asked, the clues.

        A compact response of another length has no cells to tell apart, so all of it is protected.
        """
        if self.prompt == "compact":
            if len(response) != CELLS:
                return merge_spans([(0, len(response))])
            clues = self.anchors == "blanks"
            return merge_spans((cell, cell + 1) for cell, clue in enumerate(_puzzle(problem)) if (clue != "0") == clues)
        solution = cast(str, problem.data["solution"])
        copies = [(at, at + CELLS) for at in range(len(response)) if response.startswith(solution, at)]
        return merge_spans([*answer_spans(response), *boxed_spans(response), *copies])

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
            yield puzzle, hasty(puzzle) if rng.random() < self.wrong_demo_fraction else solutions(puzzle)[0]


def _puzzle(problem: Problem) -> str:
    return cast(str, problem.data["puzzle"])


@lru_cache(maxsize=8)
def _problems(task: Sudoku, split: Literal["train", "test"]) -> tuple[Problem, ...]:
    count = task.train_problems if split == "train" else task.test_problems
    source, other = (task.train, task.test) if split == "train" else (task.test, task.train)
    # An evaluation on a file of one's own needs no training data.
    elsewhere = read_problems(other, task.read) if other and (split == "train" or not source) else ()
    if source:
        read = read_problems(source, task.read, count)
        refuse_overlap(read, elsewhere, f"task.train {task.train!r} and task.test {task.test!r}")
        return read
    rng, grids = random.Random(f"sudoku {split} {task.seed}"), task.grids(split)
    taken = {problem.key for problem in elsewhere}

    def draw() -> Problem | None:
        problem = task.problem(draw_puzzle(rng, grids, task.blanks))
        return None if problem.key in taken else problem

    return distinct_problems(draw, count, f"task.{split}_problems")


def blank_cells(problem: Problem, parts: Mapping[str, float]) -> tuple[int, int]:
    """(right, of how many) blank cells by a grade's parts: what d1 and SPG report as Sudoku's accuracy."""
    blanks = _puzzle(problem).count("0")
    return round(parts["cells"] * blanks), blanks
