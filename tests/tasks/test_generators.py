"""Thousands of generated puzzles: all have a solution, splits are disjoint, and a seed gives the same puzzles."""

import hashlib

import pytest

from stipule.tasks.countdown import Countdown, _problems
from stipule.tasks.countdown_workings import solve
from stipule.tasks.expressions import parse_expression
from stipule.tasks.sudoku import Sudoku
from stipule.tasks.sudoku import _problems as _sudoku_problems
from stipule.tasks.sudoku_grids import UNITS


def fingerprint(problems):
    return hashlib.sha256("\n".join(p.key for p in problems).encode()).hexdigest()


def is_countdown_solvable(task, problem):
    numbers, target = problem.data["numbers"], problem.data["target"]
    solution = solve(numbers, target, task.operations, task.bound)
    expression = parse_expression(solution.text)
    return expression.uses(numbers) and expression.value == target


def is_sudoku_solvable(problem):
    puzzle, solution = problem.data["puzzle"], problem.data["solution"]
    keeps_clues = all(p in ("0", s) for p, s in zip(puzzle, solution, strict=True))
    return keeps_clues and "0" in puzzle and all({solution[cell] for cell in unit} == set("1234") for unit in UNITS)


def check_generators(train, test):
    countdown = Countdown(train_problems=train, test_problems=test, largest=100)
    sudoku = Sudoku(train_problems=train, test_problems=test)
    for task, cached_problems, is_solvable in (
        (countdown, _problems, lambda p: is_countdown_solvable(countdown, p)),
        (sudoku, _sudoku_problems, is_sudoku_solvable),
    ):
        splits = {split: task.problems(split) for split in ("train", "test")}
        assert (len(splits["train"]), len(splits["test"])) == (train, test)
        assert all(map(is_solvable, splits["train"])) and all(map(is_solvable, splits["test"]))
        assert not {p.key for p in splits["train"]} & {p.key for p in splits["test"]}
        name = "numbers" if task is countdown else "solution"  # each multiset or grid is in one split only
        sources = {split: {tuple(sorted(p.data[name])) if name == "numbers" else p.data[name] for p in problems}
                   for split, problems in splits.items()}  # fmt: skip
        assert not sources["train"] & sources["test"]
        expected = {split: fingerprint(problems) for split, problems in splits.items()}
        cached_problems.cache_clear()
        assert expected == {split: fingerprint(task.problems(split)) for split in expected}
        cached_problems.cache_clear()
    assert fingerprint(Sudoku(train_problems=50, seed=1).problems("train")) != fingerprint(
        sudoku.problems("train")[:50]
    )


def test_two_thousand_puzzles():
    check_generators(1_500, 500)


@pytest.mark.slow
def test_a_hundred_thousand_puzzles():
    check_generators(80_000, 20_000)


def test_generators_have_not_changed():
    """The first puzzles are fixed: a change here changes every run with these tasks."""
    assert Countdown().problems("train")[0].key == COUNTDOWN_FIRST
    assert Sudoku().problems("train")[0].key == SUDOKU_FIRST


COUNTDOWN_FIRST = "countdown:53,59,74=68"
SUDOKU_FIRST = "sudoku:3120401000010302"
