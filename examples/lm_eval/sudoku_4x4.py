"""The problems of sudoku_4x4.yaml: the puzzles that `stipule eval tiny/sudoku` uses, in the same order."""

from typing import Any

from datasets import Dataset

from stipule import Sudoku


def problems(**metadata: Any) -> dict[str, Dataset]:
    """The test split. lm_eval passes the arguments of the model, which the puzzles do not depend on."""
    rows = [
        {key: problem.data[key] for key in ("puzzle", "solution")}
        for problem in Sudoku(prompt="compact").problems("test")
    ]
    return {"test": Dataset.from_list(rows)}
