"""The parts of d1's training rewards (Zhao et al. 2025), with what its published code gets wrong kept as it is.

Part values are shares, the weights make them d1's amounts.
"""

import re
from collections.abc import Mapping, Sequence

from stipule.tasks.answers import CLOSE, OPEN
from stipule.tasks.d1_answers import last_tag, right_cells, uses_and_reaches
from stipule.tasks.d1_latex import d1_box, d1_equal

GSM8K_WEIGHTS = {"correctness": 2.0, "integer": 0.5, "soft_format": 0.5, "strict_format": 0.5, "xml_count": 0.5}
MATH_WEIGHTS = {"correctness": 2.0, "format": 1.0}
COUNTDOWN_WEIGHTS = {"solved": 0.9, "attempt": 0.1}
SUDOKU_WEIGHTS = {"tagged_cells": 1.0}

# Without DOTALL and anchored, as published: reasoning of more than one line never matches.
_SOFT = re.compile(r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>")
_STRICT = re.compile(r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$")


def gsm8k_parts(response: str, gold: str) -> Mapping[str, float]:
    """correctness is equality with the gold text as written ("1,080"); integer is str.isdigit, which takes "²" too."""
    answer = response.split(OPEN)[-1].split(CLOSE)[0].strip()
    return {
        "correctness": float(answer == gold),
        "integer": float(answer.isdigit()),
        "soft_format": float(_soft(response)),
        "strict_format": float(_STRICT.match(response) is not None),
        "xml_count": xml_count(response) / 0.5,
    }


def _soft(response: str) -> bool:
    # The pattern can only match in its first lines; cut there, it cannot be made to backtrack over a long response.
    return response.startswith("<reasoning>") and _SOFT.match(response[:4000]) is not None


def xml_count(response: str) -> float:
    """An eighth for each of four marks that occurs once, minus 0.001 per character after the answer.

    The third mark's fine looks for a line end after `</answer>`; an answer that ends there is fined for its whole
    length, which pulls responses short.  So the value can be far below 0.
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
    r"""format is 3/4 with tags and 1/4 without: the published pattern holds a backspace and never finds `\boxed`."""
    box = d1_box(response)
    return {
        "correctness": float(d1_equal(response if box is None else box, gold)),
        "format": 0.5 * ((OPEN in response and CLOSE in response) + 0.5),
    }


def countdown_parts(response: str, numbers: Sequence[int], target: int) -> Mapping[str, float]:
    """A tenth for any closed tag, whatever it holds."""
    answer = last_tag(response)
    solved = answer is not None and uses_and_reaches(answer.strip(), list(numbers), target)
    return {"solved": float(solved), "attempt": float(answer is not None)}


def sudoku_parts(response: str, puzzle: str, solution: str) -> Mapping[str, float]:
    """All digits of the last tag, cut to 16; rows and columns are not checked."""
    answer = "".join(filter(str.isdigit, last_tag(response) or ""))
    return {"tagged_cells": right_cells(answer, puzzle, solution) / max(1, puzzle.count("0"))}
