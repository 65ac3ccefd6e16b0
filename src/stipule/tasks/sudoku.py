"""4x4 Sudoku: puzzles with one solution.  Splits differ by solution grid; grading checks the rules of the game."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

from stipule.errors import RecipeError
from stipule.tasks.answers import CLOSE, OPEN, WHITESPACE, answer_spans, merge_spans
from stipule.tasks.boxed import boxed_spans, final_answer
from stipule.tasks.d1_answers import num_correct_cells, sudoku_text
from stipule.tasks.d1_rewards import SUDOKU_WEIGHTS, sudoku_parts
from stipule.tasks.dataset import check_no_overlap, read_problems
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
    fill_rows_only,
    sample_puzzle,
    solutions,
)
from stipule.tasks.sudoku_workings import ANSWER, FILLED, NEXT_ROW, work_through, worked_answer
from stipule.tasks.weights import check_grading, merge_weights, weighted_sum

TRAIN_FRACTION = 0.8
STRICT_WEIGHTS = {"solved": 0.9, "format": 0.1}
MAX_SHOTS = 3
TINY_PROMPTS = ("compact", "worked")  # the prompt is the 16 characters; for tiny models


@dataclass(frozen=True, kw_only=True)
class Sudoku:
    """4x4 Sudoku: fill the empty cells so that each row, column and box has 1, 2, 3 and 4.

    prompt: "d1": the format of d1's training (Zhao et al. 2025: rules, then a 16-character string; answer in tags).
    "d1_eval": that of d1's evaluation, with <reasoning> as the start of the response. "stipule": our own. The texts
    of all three are ours (tasks/prompt_templates). For tiny models the prompt is only the 16 characters, and the
    response of "compact" is 16 digits, that of "worked" goes through the rows first (tasks/sudoku_workings.py).
    grading: "strict" checks rows, columns, boxes and clues; "d1" is the rule of d1's evaluation and its training
    reward (docs/grading.md).
    shots: worked examples in the prompt, 3 in SPG (Wang et al. 2025); their solutions are excluded from training.
    train, test: files of JSON lines or CSV with Puzzle and Solution; the first train_problems or test_problems are
    used. None: puzzles are generated, without those of the other split's file.
    blanks: least and greatest number of empty cells; all numbers are equally likely.
    wrong_demo_fraction: fraction of wrong demonstrations; used only to pre-train a tiny base.
    anchors: cells of a compact response that may become anchors: "clues", which repeat the prompt, or "blanks", which
    are parts of the answer and so give hints, as the reference solutions of table 4 do.
    weights: of the reward parts; strict: solved 0.9, format 0.1, cells 0; d1: tagged_cells 1.
    d1 splits by puzzle, so most of its test solutions are also in training.  Here no solution grid is in both splits,
    unless train or test is a file (d1's file contains 229 of the 288 grids).
    """

    kind: Literal["sudoku"] = "sudoku"
    prompt: Literal["d1", "d1_eval", "stipule", "compact", "worked"] = "d1"
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
        merge_weights(self.weights, self._defaults)
        allowed = 0 if self.prompt in TINY_PROMPTS else MAX_SHOTS
        check_range("task.shots", self.shots, "the number of worked examples in the prompt", 0, allowed, allowed)
        meaning = "the least and greatest number of empty cells of a 4x4 puzzle with one solution"
        check_range("task.blanks", self.blanks, meaning, 1, MAX_BLANKS, (6, 11))
        check_counts(self.train_problems, self.test_problems, self.wrong_demo_fraction)
        if self.anchors == "blanks" and self.prompt != "compact":
            raise RecipeError(
                f"task.anchors is blanks with task.prompt {self.prompt}, where anchors may not contain the answer; "
                "leave task.anchors out, or set task.prompt=compact"
            )

    @property
    def name(self) -> str:
        return self.kind

    @property
    def _defaults(self) -> Mapping[str, float]:
        return SUDOKU_WEIGHTS if self.grading == "d1" else {**STRICT_WEIGHTS, "cells": 0.0}

    @property
    def vocabulary(self) -> Vocabulary:
        check_compact(self.prompt, TINY_PROMPTS)
        if self.prompt == "worked":
            return Vocabulary(("0", *DIGITS, FILLED, NEXT_ROW, ANSWER), f"[0-4{FILLED}{NEXT_ROW}{ANSWER}]")
        return Vocabulary(("0", *DIGITS), "[0-4]")

    @property
    def response_length(self) -> int | None:
        """Tokens of a complete response with a tiny tokenizer, which has one per character; None: not known."""
        if self.prompt == "worked":
            return len(work_through("0" * CELLS, "0" * CELLS))
        return CELLS if self.prompt == "compact" else None

    def grids(self, split: str) -> tuple[str, ...]:
        """The solution grids of a split, in a seeded order: 230 of the 288 for training, 58 for the test.

        The grids of the worked examples are in neither.
        """
        shuffled = list(all_grids())
        random.Random(f"sudoku grids {self.seed}").shuffle(shuffled)
        cut = round(TRAIN_FRACTION * len(shuffled))
        return tuple(shuffled[self.shots : cut] if check_split(split) == "train" else shuffled[cut:])

    @property
    def examples(self) -> str:
        """The worked examples of the prompt, the same for every problem; empty if shots is 0."""
        if not self.shots:
            return ""
        shuffled = list(all_grids())
        random.Random(f"sudoku grids {self.seed}").shuffle(shuffled)
        rng = random.Random(f"sudoku examples {self.seed}")
        pairs = [(sample_puzzle(rng, (grid,), self.blanks), grid) for grid in shuffled[: self.shots]]
        return "".join(f"Sudoku puzzle: {puzzle}\n{OPEN}\n{grid}\n{CLOSE}\n\n" for puzzle, grid in pairs)

    def problems(self, split: str) -> tuple[Problem, ...]:
        return _problems(self, check_split(split))

    def problem(self, puzzle: str, solution: str | None = None) -> Problem:
        """The problem of a 16-character puzzle.

        RecipeError unless the puzzle has a blank, and has either exactly one solution or the given one.
        """
        all_solutions = solutions(puzzle)
        if solution is None and len(all_solutions) == 1:
            solution = all_solutions[0]
        if solution not in all_solutions or "0" not in puzzle:
            given = f" and the solution {solution!r}" if solution else ""
            raise RecipeError(
                f"the puzzle is {puzzle!r} with {len(all_solutions)} solutions{given}; it must be 16 digits 0-4, 0 for "
                "a blank, with at least one blank, and have this or exactly one solution; add or correct clues"
            )
        text = puzzle
        if self.prompt not in TINY_PROMPTS:
            text = format_prompt(self.kind, self.prompt, puzzle=puzzle, examples=self.examples)
        data = {"puzzle": puzzle, "solution": solution}
        return Problem(f"sudoku:{puzzle}", text, data, prefill=prefill(self.prompt))

    def read(self, location: str, row: Any) -> Problem:
        """The problem of a row; RecipeError if it cannot be read."""
        puzzle, solution = (str(get_column(location, row, name, name.title())) for name in ("puzzle", "solution"))
        try:
            return self.problem(puzzle, solution)
        except RecipeError as cause:
            raise RecipeError(f"{location}: {cause}") from cause

    def grade(self, problem: Problem, response: str) -> Grade:
        """strict: solved; format = 16 digits 1-4 that keep the clues; cells = the fraction of blank cells that equal
        the solution, 0 if the answer is not 16 digits.

        With the default weights the reward is 1 if solved, 0.1 if only format is met, else 0.
        """
        puzzle, solution = _puzzle(problem), cast(str, problem.data["solution"])
        blanks = puzzle.count("0")
        if self.grading == "d1":
            correct_cells = num_correct_cells(sudoku_text(response), puzzle, solution)
            solved = correct_cells == blanks
            parts = {
                "correct": float(solved),
                "cells": correct_cells / blanks,
                **sudoku_parts(response, puzzle, solution),
            }
        else:
            answer = self.answer(response) or ""
            is_grid = len(answer) == CELLS and set(answer) <= set(DIGITS)
            keeps_clues = is_grid and all(clue in ("0", digit) for clue, digit in zip(puzzle, answer, strict=True))
            solved = keeps_clues and all(distinct(answer[cell] for cell in unit) for unit in UNITS)
            correct_cells = num_correct_cells(answer, puzzle, solution) if is_grid else 0
            parts = {"solved": float(solved), "cells": correct_cells / blanks, "format": float(keeps_clues)}
        return Grade(weighted_sum(parts, merge_weights(self.weights, self._defaults)), parts, solved)

    def answer(self, response: str) -> str | None:
        """The answer under the strict rules: tagged or boxed; a whole compact response; after a worked one's mark."""
        if self.prompt == "worked":
            return worked_answer(response)
        answer = final_answer(response)
        return response.strip(WHITESPACE) if answer is None and self.prompt == "compact" else answer

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """Tagged answers and copies of the solution; in a compact response the blank cells or the clues (`anchors`).

        A compact response of another length does not map to cells and is protected as a whole. A worked response is
        protected from its answer mark on, and as a whole if it has none.
        """
        if self.prompt == "compact":
            if len(response) != CELLS:
                return merge_spans([(0, len(response))])
            protect_clues = self.anchors == "blanks"
            cells = (cell for cell, clue in enumerate(_puzzle(problem)) if (clue != "0") == protect_clues)
            return merge_spans((cell, cell + 1) for cell in cells)
        solution = cast(str, problem.data["solution"])
        copies = [(start, start + CELLS) for start in range(len(response)) if response.startswith(solution, start)]
        if self.prompt == "worked":
            return merge_spans([(max(response.find(ANSWER), 0), len(response)), *copies])
        return merge_spans([*answer_spans(response), *boxed_spans(response), *copies])

    def reference(self, problem: Problem) -> str:
        """The solution; marked or in tags unless the prompt is compact, so that no anchor contains it."""
        solution = cast(str, problem.data["solution"])
        if self.prompt == "worked":
            return work_through(_puzzle(problem), solution)
        return solution if self.prompt == "compact" else f"{OPEN}\n{solution}\n{CLOSE}"

    def demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """(puzzle, response) pairs of a tiny prompt from training grids.

        A fraction `wrong_demo_fraction` fills each row without regard to columns and boxes; the others are solved.
        Both kinds are equally long, so that low-confidence remasking prefers neither for its length.
        RecipeError if the task's prompts are for larger models.
        """
        check_compact(self.prompt, TINY_PROMPTS)
        return self._demonstrations(rng)

    def _demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        grids = self.grids("train")
        while True:
            puzzle = sample_puzzle(rng, grids, self.blanks)
            grid = fill_rows_only(puzzle) if rng.random() < self.wrong_demo_fraction else solutions(puzzle)[0]
            yield puzzle, work_through(puzzle, grid) if self.prompt == "worked" else grid


def _puzzle(problem: Problem) -> str:
    return cast(str, problem.data["puzzle"])


@lru_cache(maxsize=8)
def _problems(task: Sudoku, split: Literal["train", "test"]) -> tuple[Problem, ...]:
    count = task.train_problems if split == "train" else task.test_problems
    source, other = (task.train, task.test) if split == "train" else (task.test, task.train)
    # An evaluation on a test file needs no training data.
    other_problems = read_problems(other, task.read) if other and (split == "train" or not source) else ()
    if source:
        problems = read_problems(source, task.read, count)
        check_no_overlap(problems, other_problems, f"task.train {task.train!r} and task.test {task.test!r}")
        return problems
    rng, grids = random.Random(f"sudoku {split} {task.seed}"), task.grids(split)
    excluded = {problem.key for problem in other_problems}

    def sample() -> Problem | None:
        problem = task.problem(sample_puzzle(rng, grids, task.blanks))
        return None if problem.key in excluded else problem

    return distinct_problems(sample, count, f"task.{split}_problems")


def blank_cells(problem: Problem, parts: Mapping[str, float]) -> tuple[int, int]:
    """(correct, total) blank cells from the parts of a grade; d1 and SPG report this as the accuracy of Sudoku."""
    blanks = _puzzle(problem).count("0")
    return round(parts["cells"] * blanks), blanks
