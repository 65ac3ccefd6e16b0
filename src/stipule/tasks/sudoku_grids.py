"""4x4 Sudoku grids: all 288 solved grids, the solutions of a puzzle, and random puzzles."""

import random
from collections.abc import Iterable
from functools import cache
from itertools import permutations, product

DIGITS = "1234"
CELLS = 16
# Every 4x4 puzzle with fewer than four clues has several solutions.
MAX_BLANKS = 12
_ROWS = [range(4 * row, 4 * row + 4) for row in range(4)]
_COLUMNS = [range(column, CELLS, 4) for column in range(4)]
_BOXES = [(corner, corner + 1, corner + 4, corner + 5) for corner in (0, 2, 8, 10)]
UNITS = (*_ROWS, *_COLUMNS, *_BOXES)


@cache
def all_grids() -> tuple[str, ...]:
    """The 288 solved grids as 16-digit strings, ascending."""
    grids = [""]
    for _ in range(4):
        grids = [top + "".join(row) for top, row in product(grids, permutations(DIGITS))]
        grids = [top for top in grids if all(distinct(top[cell] for cell in unit if cell < len(top)) for unit in UNITS)]
    return tuple(grids)


def distinct(digits: Iterable[str]) -> bool:
    """Whether no digit occurs twice."""
    as_list = list(digits)
    return len(set(as_list)) == len(as_list)


@cache
def _grids_with(cell: int, digit: str) -> int:
    """Bit i is set if grid i of all_grids() has `digit` in `cell`."""
    return sum(1 << index for index, grid in enumerate(all_grids()) if grid[cell] == digit)


def solutions(puzzle: str) -> tuple[str, ...]:
    """All solutions of a puzzle (0 is a blank), ascending; empty if the text is not a puzzle."""
    if len(puzzle) != CELLS or not set(puzzle) <= set("0" + DIGITS):
        return ()
    candidates = (1 << len(all_grids())) - 1
    for cell, clue in enumerate(puzzle):
        if clue != "0":
            candidates &= _grids_with(cell, clue)
    descending = []
    while candidates:
        descending.append(all_grids()[candidates.bit_length() - 1])
        candidates ^= 1 << (candidates.bit_length() - 1)
    return tuple(reversed(descending))


def fill_rows_only(puzzle: str) -> str:
    """Fill each row's blanks with its missing digits in ascending order; columns and boxes are ignored."""
    filled = list(puzzle)
    for row in _ROWS:
        missing = sorted(set(DIGITS) - {puzzle[cell] for cell in row})
        for cell, digit in zip((cell for cell in row if puzzle[cell] == "0"), missing, strict=True):
            filled[cell] = digit
    return "".join(filled)


def sample_puzzle(rng: random.Random, grids: tuple[str, ...], blanks: tuple[int, int]) -> str:
    """A random puzzle with exactly one solution, which is one of `grids`.

    The number of blanks is sampled once, before the test for uniqueness, so that every number stays equally likely.
    """
    count = rng.randint(*blanks)
    while True:
        cells = list(rng.choice(grids))
        for cell in rng.sample(range(CELLS), count):
            cells[cell] = "0"
        puzzle = "".join(cells)
        if len(solutions(puzzle)) == 1:
            return puzzle
