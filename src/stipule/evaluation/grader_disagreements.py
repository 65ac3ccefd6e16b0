"""Finds responses that the d1 rules and the strict rules grade differently, and names the kind of disagreement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from stipule.evaluation.regrade import SavedResponse, finished_text
from stipule.tasks.answers import answer_text
from stipule.tasks.boxed import final_answer, last_boxed
from stipule.tasks.countdown import Countdown
from stipule.tasks.d1_answers import gsm8k_value, math_answer
from stipule.tasks.number_parsing import number_with_unit, plain_number
from stipule.tasks.problem import Grade


@dataclass(frozen=True)
class Disagreement:
    """A response that gets a higher grade under one protocol than under the other."""

    response: SavedResponse
    higher_protocol: str  # the protocol with the higher grade
    kind: str
    d1: int  # blank cells for Sudoku, else 0 or 1
    strict: int


def find_disagreements(
    responses: Sequence[SavedResponse], d1: Sequence[Grade], strict: Sequence[Grade]
) -> list[Disagreement]:
    """The disagreements in order. Sudoku compares correct blank cells (or solved puzzles), other tasks correctness."""
    disagreements = []
    for saved, d1_grade, strict_grade in zip(responses, d1, strict, strict=True):
        strict_count, d1_count = int(strict_grade.correct), int(d1_grade.correct)
        if saved.task == "sudoku":
            blanks = str(saved.problem.data["puzzle"]).count("0")
            strict_count, d1_count = (round(grade.parts["cells"] * blanks) for grade in (strict_grade, d1_grade))
            if strict_grade.correct and strict_count < blanks:  # solved, but not with the solution in the file
                disagreements.append(Disagreement(saved, "strict", "another solution of the puzzle", d1_count, blanks))
                continue
        if strict_count != d1_count:
            is_strict_higher = strict_count > d1_count
            kind = _KINDS[saved.task](saved, finished_text(saved.response), is_strict_higher)
            higher = "strict" if is_strict_higher else "d1"
            disagreements.append(Disagreement(saved, higher, kind, d1_count, strict_count))
    return disagreements


def _gsm8k(saved: SavedResponse, text: str, is_strict_higher: bool) -> str:
    answer = final_answer(text)
    if is_strict_higher:
        number = plain_number(str(saved.problem.data["gold"]))
        value = gsm8k_value(saved.response)
        if number is not None and number < 0:
            return "a gold answer below 0, which d1's evaluation cannot read"
        if "," in cast(str, answer):
            return "a comma between digits: d1 reads the number before it"
        if value is None:
            return "a box over several lines, which d1 does not find"
        return "d1 takes the first number of the first box, not the answer"
    if answer is None:
        return "no closed answer tag and no closed box"
    if number_with_unit(answer) is not None:
        return "another answer than the one d1 takes, and a wrong one"
    if ("boxed" in answer and last_boxed(answer) is None) or answer.startswith("\\boxed{}"):
        return "a box that is broken or never closed, in a closed tag: d1 takes the tag's last number"
    return "more than one number with its unit: d1 takes one of the numbers"


def _math(saved: SavedResponse, text: str, is_strict_higher: bool) -> str:
    gold, answer = str(saved.problem.data["gold"]), final_answer(text)
    if is_strict_higher:
        assert answer is not None, "a correct response has an answer"
        if last_boxed(text) is None:
            return "an answer in its tag without a box: d1 compares the whole text"
        if plain_number(gold) is not None and plain_number(answer) is not None:
            return "equal numbers, written differently"
        if last_boxed(answer) is None and math_answer(saved.response).strip() != answer:
            return "d1 takes another box"
        return "equal in meaning, in another notation (math-verify)"
    if answer is None:
        return "no closed answer tag and no closed box"
    return "d1's normal form makes unequal answers equal, or takes another box"


def _countdown(saved: SavedResponse, text: str, is_strict_higher: bool) -> str:
    if is_strict_higher:
        return "an expression in its tag without a box: d1 reads the whole text"
    answer = Countdown().answer(text)
    if answer is None:
        return "no closed answer tag and no closed box"
    return (
        "an equation, where an expression was asked for" if "=" in answer else "no plain expression: ** // . or signs"
    )


def _sudoku(saved: SavedResponse, text: str, is_strict_higher: bool) -> str:
    if is_strict_higher:
        return "an answer that d1's patterns do not take"
    answer = final_answer(text)
    if answer is None or answer_text(text) is None:
        return "no closed answer tag: d1 takes what follows an open one"
    digits = "".join(answer.split())
    if len(digits) == 16 and set(digits) <= set("1234"):
        return "16 digits with blanks between them: d1 takes the blanks out"
    if len(digits) == 16 and set(digits) <= set("01234"):
        return "cells left empty: d1 counts the others"
    if len(digits) != 16 and set(digits) <= set("01234"):
        return "not 16 digits: d1 pads with 0 or cuts"
    return "other characters than digits 1 to 4: d1 counts the cells that fall into place"


def _arithmetic(saved: SavedResponse, text: str, is_strict_higher: bool) -> str:
    raise AssertionError("arithmetic has the same rules under both protocols")


_KINDS: dict[str, Callable[[SavedResponse, str, bool], str]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "countdown": _countdown,
    "sudoku": _sudoku,
    "arithmetic": _arithmetic,
}
