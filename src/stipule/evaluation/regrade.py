"""Grades saved responses again, under the rules of d1 or the strict ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stipule.errors import RecipeError, StipuleError
from stipule.evaluation.statistics import wilson
from stipule.tasks.arithmetic import Arithmetic
from stipule.tasks.countdown import Countdown
from stipule.tasks.d1_answers import END_MARKS
from stipule.tasks.dataset_io import get_column, read_file_rows
from stipule.tasks.gsm8k import Gsm8k
from stipule.tasks.math import Math
from stipule.tasks.problem import Grade, Problem
from stipule.tasks.sudoku import Sudoku, blank_cells

Protocol = Literal["d1", "strict"]
PROTOCOLS: tuple[Protocol, ...] = ("d1", "strict")
TASKS = ("gsm8k", "math", "countdown", "sudoku", "arithmetic")

# Other names of the tasks in published files.
_NAMES = {"math500": "math", "math-500": "math", "gsm": "gsm8k"}


@dataclass(frozen=True)
class SavedResponse:
    """A response with its problem, and the file and line that it was read from."""

    location: str
    task: str
    problem: Problem
    response: str


@dataclass
class Tally:
    """Counts of one task under one protocol: responses, or blank cells of Sudoku under d1."""

    correct: int = 0
    total: int = 0
    undecided: int = 0  # grading ran out of time or memory; counted as wrong
    parts: dict[str, float] = field(default_factory=dict)  # sums over responses

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of correct / total."""
        return wilson(self.correct, self.total)


def read_saved_responses(path: Path, task: str | None = None) -> list[SavedResponse]:
    """Reads a file (JSON lines or array, plain or .gz, CSV or Parquet).

    Its columns are question, gold, response and, unless it is given, task.

    Raises RecipeError with file and line for malformed lines, missing columns, gold answers that cannot be read, and an
    `id` that occurs twice.
    """
    if not path.is_file():
        raise RecipeError(f"there is no file {str(path)!r}; give a file of JSON lines, plain or .gz")
    responses: list[SavedResponse] = []
    location_of_id: dict[object, str] = {}
    for location, row in read_file_rows(path):
        name = task or get_column(location, row, "task")
        response = get_column(location, row, "response")
        if not isinstance(response, str):
            raise RecipeError(
                f"{location} has the response {_short(response)}; it must be a text; correct or remove the line"
            )
        if "gold" not in row:
            raise RecipeError(f"{location} has no column gold; its columns: {', '.join(row)}; add the gold answer")
        canonical = _NAMES.get(str(name), str(name))
        if canonical not in TASKS:
            raise RecipeError(f"{location} has the task {name!r}; it must be one of {', '.join(TASKS)}; or give --task")
        identity = row.get("id")
        if identity is not None and (first := location_of_id.setdefault(str(identity), location)) != location:
            raise RecipeError(f"{location} has the id {_short(identity)}, which {first} has too; remove one of them")
        try:
            problem = _problem(canonical, str(get_column(location, row, "question")), row["gold"])
        except (RecipeError, TypeError, ValueError, KeyError) as cause:
            reason = str(cause).removeprefix(f"{location} ").removeprefix(f"{location}: ")
            raise RecipeError(f"{location} cannot be graded as {canonical}: {reason}") from cause
        responses.append(SavedResponse(location, canonical, problem, response))
    if not responses:
        raise RecipeError(f"{path} contains no response; give a file with one response per line")
    return responses


def _problem(task: str, question: str, gold: Any) -> Problem:
    if task == "gsm8k":
        # A gold answer None could not be read when the file was saved: no response to it is correct.
        return Gsm8k().problem(question, gold.rpartition("####")[2].strip() if isinstance(gold, str) else gold)
    if task == "math":
        return Math().problem(question, gold)
    if task == "countdown":
        if not isinstance(gold, list | tuple) or len(gold) != 2 or not isinstance(gold[0], list | tuple):
            raise RecipeError(
                f"the gold answer is {_short(gold)}; it must be the numbers and the target: [[3, 7, 12], 15]"
            )
        row = {"numbers": list(gold[0]), "target": gold[1]}
        problem = Countdown(numbers=4 if len(gold[0]) == 4 else 3).read("the gold answer", row)
        if problem is None:
            raise RecipeError(f"the gold answer has {len(gold[0])} numbers; puzzles have 3 or 4")
        return problem
    if task == "sudoku":
        puzzle = re.search("(?<![0-9])[0-9]{16}(?![0-9])", question)
        if puzzle is None:
            raise RecipeError(f"its question has no puzzle of 16 digits: {_short(question)}")
        return Sudoku().problem(puzzle.group(), str(gold))
    numbers = re.search(r"(\d{1,9}) ?([-+*]) ?(\d{1,9})", question)
    if numbers is None:
        raise RecipeError(f"its question has no sum such as 7+5: {_short(question)}")
    return Arithmetic().problem(int(numbers[1]), numbers[2], int(numbers[3]))


def grade_saved_response(saved: SavedResponse, protocol: Protocol) -> Grade:
    """The grade of a response under a protocol.

    d1 grades the whole response with its special tokens, as the published evaluation does. strict grades the text
    before the first end-of-text mark. Arithmetic, which no paper uses, has the same rules under both protocols.
    """
    text = saved.response if protocol == "d1" else finished_text(saved.response)
    match saved.task:
        case "gsm8k":
            return Gsm8k(grading=protocol).grade(saved.problem, text)
        case "math":
            return Math(grading=protocol).grade(saved.problem, text)
        case "countdown":
            return Countdown(grading=protocol).grade(saved.problem, text)
        case "sudoku":
            return Sudoku(grading=protocol).grade(saved.problem, text)
    return Arithmetic().grade(saved.problem, finished_text(saved.response))


def finished_text(response: str) -> str:
    """The text before the first end-of-text mark."""
    return response[: min((i for mark in END_MARKS if (i := response.find(mark)) >= 0), default=len(response))]


def count_correct(saved: SavedResponse, grade: Grade, protocol: Protocol) -> tuple[int, int]:
    """(correct, total) that a grade adds to its task's tally: one response, or the blank cells of Sudoku under d1."""
    if saved.task == "sudoku" and protocol == "d1":
        return blank_cells(saved.problem, grade.parts)
    return int(grade.correct), 1


def grade_file(
    responses: Sequence[SavedResponse],
    protocol: Protocol,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Grade], dict[str, Tally]]:
    """The grade of each response, and a tally per task. Both keep the order of the file."""
    grades: list[Grade] = []
    tallies: dict[str, Tally] = {}
    progress(0, len(responses))
    for saved in responses:
        try:
            grade = grade_saved_response(saved, protocol)
        except StipuleError as cause:
            raise StipuleError(f"{saved.location}: {cause}") from cause
        tally = tallies.setdefault(saved.task, Tally())
        correct, total = count_correct(saved, grade, protocol)
        tally.correct, tally.total = tally.correct + correct, tally.total + total
        tally.undecided += int(grade.parts.get("undecided", 0))
        for name, value in grade.parts.items():
            tally.parts[name] = tally.parts.get(name, 0.0) + value
        grades.append(grade)
        progress(len(grades), len(responses))
    return grades, tallies


def as_json(path: Path, protocol: Protocol, tallies: Mapping[str, Tally], seconds: float) -> dict[str, Any]:
    """The content of the result file: counts first."""
    return {
        "protocol": protocol,
        "tasks": {name: {"correct": tally.correct, "total": tally.total} for name, tally in tallies.items()},
        "file": str(path),
        "seconds": round(seconds, 2),
        "details": {
            name: {
                "interval": [round(edge, 6) for edge in tally.interval],
                "undecided": tally.undecided,
                "parts": {key: round(value, 6) for key, value in tally.parts.items()},
            }
            for name, tally in tallies.items()
        },
    }


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
