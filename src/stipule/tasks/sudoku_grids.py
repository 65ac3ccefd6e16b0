"""4x4 Sudoku grids: all 288 of them, what solves a puzzle, how one is drawn."""

import random
from collections.abc import Iterable
from functools import cache
from itertools import permutations, product

DIGITS = "1234"
CELLS = 16
# A 4x4 puzzle with fewer than four clues has several solutions, always.
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
    """Whether no digit comes twice."""
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
