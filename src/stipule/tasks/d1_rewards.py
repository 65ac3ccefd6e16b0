"""The parts of d1's training rewards (Zhao et al. 2025), with the errors of its published code.

A part is a fraction of its maximum; multiplied by its weight it is d1's value.
"""

import re
from collections.abc import Mapping, Sequence

from stipule.tasks.answers import CLOSE, OPEN
from stipule.tasks.d1_answers import last_tag, num_correct_cells, solves_countdown
from stipule.tasks.d1_latex import d1_box, d1_equal

GSM8K_WEIGHTS = {"correctness": 2.0, "integer": 0.5, "soft_format": 0.5, "strict_format": 0.5, "xml_count": 0.5}
MATH_WEIGHTS = {"correctness": 2.0, "format": 1.0}
COUNTDOWN_WEIGHTS = {"solved": 0.9, "attempt": 0.1}
SUDOKU_WEIGHTS = {"tagged_cells": 1.0}

# As published, without DOTALL: reasoning of more than one line never matches.
_SOFT = re.compile(r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>")
_STRICT = re.compile(r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$")


def gsm8k_parts(response: str, gold: str) -> Mapping[str, float]:
    """correctness: the text equals the gold text ("1,080" is not "1080").  integer: str.isdigit, so "²" counts too."""
    answer = response.split(OPEN)[-1].split(CLOSE)[0].strip()
    return {
        "correctness": float(answer == gold),
        "integer": float(answer.isdigit()),
        "soft_format": float(_matches_soft_format(response)),
        "strict_format": float(_STRICT.match(response) is not None),
        "xml_count": xml_count(response) / 0.5,
    }


def _matches_soft_format(response: str) -> bool:
    # A match can only be in the first lines; the cut prevents slow backtracking over a long response.
    return response.startswith("<reasoning>") and _SOFT.match(response[:4000]) is not None


def xml_count(response: str) -> float:
    """0.125 for each of four marks that occurs once, minus 0.001 per character after the answer.

    The penalty of the third mark searches for a line end after `</answer>`.  Without one, the length of the whole
    response is the penalty, so the value can be far below 0 and training shortens responses.
    """
    count = 0.0
    for mark in ("<reasoning>\n", "\n</reasoning>\n"):
        count += 0.125 * (response.count(mark) == 1)
    if response.count("\n<answer>\n") == 1:
        count += 0.125 - len(response.split("\n</answer>\n")[-1]) * 0.001
    if response.count("\n</answer>") == 1:
        count += 0.125 - (len(response.split("\n</answer>")[-1]) - 1) * 0.001
    return count


def math_parts(response: str, gold: str) -> Mapping[str, float]:
    r"""format is 3/4 with tags, else 1/4: the published pattern for `\boxed` has a backspace and never matches."""
    content = d1_box(response)
    return {
        "correctness": float(d1_equal(response if content is None else content, gold)),
        "format": 0.5 * ((OPEN in response and CLOSE in response) + 0.5),
    }


def countdown_parts(response: str, numbers: Sequence[int], target: int) -> Mapping[str, float]:
    """attempt is 1 for any closed tag, whatever its content."""
    answer = last_tag(response)
    solved = answer is not None and solves_countdown(answer.strip(), list(numbers), target)
    return {"solved": float(solved), "attempt": float(answer is not None)}


def sudoku_parts(response: str, puzzle: str, solution: str) -> Mapping[str, float]:
    """tagged_cells: the fraction of blank cells that the digits of the last tag fill as in the solution."""
    answer = "".join(filter(str.isdigit, last_tag(response) or ""))
    return {"tagged_cells": num_correct_cells(answer, puzzle, solution) / max(1, puzzle.count("0"))}
