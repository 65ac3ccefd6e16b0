"""Responses that were saved with their questions and gold answers, graded again under named rules."""

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
from stipule.tasks.dataset_io import get_column, read_json_rows
from stipule.tasks.gsm8k import Gsm8k
from stipule.tasks.math import Math
from stipule.tasks.problem import Grade, Problem
from stipule.tasks.sudoku import Sudoku, blank_cells

Protocol = Literal["d1", "strict"]
PROTOCOLS: tuple[Protocol, ...] = ("d1", "strict")
TASKS = ("gsm8k", "math", "countdown", "sudoku", "arithmetic")

# Other names that files have for a task.
_NAMES = {"math500": "math", "math-500": "math", "gsm": "gsm8k"}


@dataclass(frozen=True)
class SavedResponse:
    """One saved response: where it stands, what was asked, what came back."""

    location: str
    task: str
    problem: Problem
    response: str


@dataclass
class Tally:
    """Counts of one task under one protocol: responses, or blank cells of Sudoku under d1."""

    correct: int = 0
    total: int = 0
    undecided: int = 0  # could not be graded in time or memory; counted as wrong
    parts: dict[str, float] = field(default_factory=dict)  # sums over responses

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share."""
        return wilson(self.correct, self.total)


def read_saved_responses(path: Path, task: str | None = None) -> list[SavedResponse]:
    """The responses of a file of JSON lines (plain or .gz) with question, gold, response and, unless given, task.

    Raises RecipeError, naming file and line, on lines that are malformed, lack a column, have a gold answer that cannot
    be read, or an `id` that came before.
    """
    if not path.is_file():
        raise RecipeError(f"there is no file {str(path)!r}; give saved responses as JSON lines, plain or packed (.gz)")
    found: list[SavedResponse] = []
    ids: dict[object, str] = {}
    for where, row in read_json_rows(path):
        name = task or get_column(where, row, "task")
        response = get_column(where, row, "response")
        if not isinstance(response, str):
            raise RecipeError(f"{where} has a response that is no text: {_short(response)}; correct or remove it")
        if "gold" not in row:
            raise RecipeError(f"{where} has no column gold; its columns: {', '.join(row)}; add the right answer")
        known = _NAMES.get(str(name), str(name))
        if known not in TASKS:
            raise RecipeError(f"{where} has the task {name!r}; it must be one of {', '.join(TASKS)}; or give --task")
        identity = row.get("id")
        if identity is not None and (before := ids.setdefault(str(identity), where)) != where:
            raise RecipeError(f"{where} has the id {_short(identity)} of {before}; keep one of them")
        try:
            problem = _problem(known, str(get_column(where, row, "question")), row["gold"])
        except (RecipeError, TypeError, ValueError, KeyError) as cause:
            reason = str(cause).removeprefix(f"{where} ").removeprefix(f"{where}: ")
            raise RecipeError(f"{where} cannot be graded as {known}: {reason}") from cause
        found.append(SavedResponse(where, known, problem, response))
    if not found:
        raise RecipeError(f"{path} holds no response")
    return found


def _problem(task: str, question: str, gold: Any) -> Problem:
    if task == "gsm8k":
        # None is a gold answer that whoever saved the file could not read: no response to it is right.
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
            raise RecipeError(f"its question holds no puzzle of 16 digits: {_short(question)}")
        return Sudoku().problem(puzzle.group(), str(gold))
    asked = re.search(r"(\d{1,9}) ?([-+*]) ?(\d{1,9})", question)
    if asked is None:
        raise RecipeError(f"its question holds no sum such as 7+5: {_short(question)}")
    return Arithmetic().problem(int(asked[1]), asked[2], int(asked[3]))


def grade_saved_response(saved: SavedResponse, protocol: Protocol) -> Grade:
    """A grade under a protocol.

    The published evaluation reads responses with their special tokens, and so does d1's protocol here; the strict one
    reads what stands before the first end mark. Arithmetic is ours alone and has one set of rules.
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
    """A response up to its first end mark."""
    return response[: min((at for mark in END_MARKS if (at := response.find(mark)) >= 0), default=len(response))]


def count_correct(saved: SavedResponse, grade: Grade, protocol: Protocol) -> tuple[int, int]:
    """(right, of how many) that a grade adds to its task's count: one response, or d1's blank cells of Sudoku."""
    if saved.task == "sudoku" and protocol == "d1":
        return blank_cells(saved.problem, grade.parts)
    return int(grade.correct), 1


def grade_file(
    responses: Sequence[SavedResponse],
    protocol: Protocol,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Grade], dict[str, Tally]]:
    """The grades in order, and a tally for each task in the order in which the tasks come."""
    grades: list[Grade] = []
    tallies: dict[str, Tally] = {}
    for saved in responses:
        try:
            grade = grade_saved_response(saved, protocol)
        except StipuleError as cause:
            raise StipuleError(f"{saved.location}: {cause}") from cause
        tally = tallies.setdefault(saved.task, Tally())
        right, total = count_correct(saved, grade, protocol)
        tally.correct, tally.total = tally.correct + right, tally.total + total
        tally.undecided += int(grade.parts.get("undecided", 0))
        for name, value in grade.parts.items():
            tally.parts[name] = tally.parts.get(name, 0.0) + value
        grades.append(grade)
        progress(len(grades), len(responses))
    return grades, tallies


def as_json(path: Path, protocol: Protocol, tallies: Mapping[str, Tally], seconds: float) -> dict[str, Any]:
    """What goes into a result file: counts first."""
    return {
        "protocol": protocol,
        "tasks": {name: {"correct": tally.correct, "total": tally.total} for name, tally in tallies.items()},
        "file": str(path),
        "seconds": round(seconds, 2),
        "details": {
            name: {
                "interval": [round(edge, 6) for edge in tally.interval],
                "undecided": tally.undecided,
                "parts": {part: round(value, 6) for part, value in tally.parts.items()},
            }
            for name, tally in tallies.items()
        },
    }


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
