"""Worked responses of a Sudoku: row by row the clues and the filled row, then the whole grid as the answer."""

from stipule.tasks.sudoku_grids import CELLS

FILLED, NEXT_ROW, ANSWER = ">", ";", "="  # `1032>1432;0020>3124;...;=1432...`: 57 characters, one token each
SIDE = 4


def work_through(puzzle: str, grid: str) -> str:
    """The response that fills `puzzle` row by row to `grid` (both of 16 digits) and repeats the grid as its answer.

    Only the blank cells of the filled rows are new: the clues are in the prompt, and the answer repeats the rows.
    """
    rows = (slice(first, first + SIDE) for first in range(0, CELLS, SIDE))
    return "".join(f"{puzzle[row]}{FILLED}{grid[row]}{NEXT_ROW}" for row in rows) + ANSWER + grid


def worked_answer(response: str) -> str | None:
    """The text after the answer mark; None where the mark is missing or occurs more than once."""
    _, mark, answer = response.partition(ANSWER)
    return answer if mark and ANSWER not in answer else None
