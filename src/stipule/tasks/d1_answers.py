r"""Answer extraction of d1's evaluation, by task (Zhao et al. 2025, `eval` of its published code).

Every rule runs in one pass.  The published regular expressions backtrack, which can take hours on a long response.
The published evaluation reads responses with their special tokens; `END_MARKS` are LLaDA's.
docs/grading.md lists the rules and their errors.
"""

import re

from stipule.tasks.answers import CLOSE, OPEN
from stipule.tasks.d1_arithmetic import numbers_in, python_value
from stipule.tasks.d1_latex import d1_box, d1_equal

END_MARKS = ("<|eot_id|>", "<|endoftext|>")
CELLS = 16
TOLERANCE = 1e-5

_NUMBER = re.compile(r"-?\d+\.?\d*")
_TERMS = re.compile(r"[0-9+\-*/() ]+")
_FENCED = re.compile(r"```([\d\s]+)```")
_BEFORE_CLOSE = re.compile(r"(\d{16})\s*" + CLOSE)
_ALONE = re.compile(r"\b(\d{16})\b")


def first_tag(text: str) -> str | None:
    """Content of the first `<answer>` tag up to the next closing one, or None."""
    start = text.find(OPEN)
    end = text.find(CLOSE, start + len(OPEN)) if start >= 0 else -1
    return text[start + len(OPEN) : end] if end >= 0 else None


def last_tag(text: str) -> str | None:
    """Content of the last `<answer>` tag, if tags are matched from the left without overlap, or None."""
    content, start = None, text.find(OPEN)
    while start >= 0:
        end = text.find(CLOSE, start + len(OPEN))
        if end < 0:
            break
        content = text[start + len(OPEN) : end]
        start = text.find(OPEN, end)
    return content


def gsm8k_value(text: str) -> float | None:
    r"""The first number of the first `\boxed{}` that has one ("1,000" is 1), else the last number of the first tag."""
    for content in _short_boxes(text):
        value = _as_float(content, index=0)
        if value is not None:
            return value
    tag = first_tag(text)
    return _as_float(tag.strip(), index=-1) if tag else None


def _short_boxes(text: str) -> list[str]:
    r"""The texts between a `\boxed{` and the next closing brace on the same line."""
    contents, position, close, line_end = [], 0, 0, 0
    while (start := text.find("\\boxed{", position)) >= 0:
        inside = start + len("\\boxed{")
        if close < inside:
            close = text.find("}", inside)
        if close < 0:
            break
        if line_end < inside:
            line_end = text.find("\n", inside)
            line_end = len(text) if line_end < 0 else line_end
        if close < line_end:
            contents.append(text[inside:close].strip())
            position = close + 1
        else:
            position = inside
    return contents


def _as_float(text: str, index: int) -> float | None:
    if not text or set(text) == {"."}:
        return None
    try:
        return float(text)
    except ValueError:
        numbers = _NUMBER.findall(text)
        return float(numbers[index]) if numbers else None


def math_answer(text: str) -> str:
    r"""The last `\boxed{}`, else the whole text; the first tag only if the last `\boxed{}` is empty or never closed."""
    box = d1_box(text)
    if box:
        return box
    tag = first_tag(text)
    return tag.strip() if tag is not None else box or ""


def is_math_correct(text: str, gold: str) -> bool:
    """Whether the answer and the gold answer are equal in d1's normal form."""
    return d1_equal(math_answer(text), gold)


def is_countdown_correct(text: str, numbers: list[int], target: int) -> bool:
    r"""Whether the last `\boxed{}` (else the whole text), or the left side of the first "terms = number", solves it."""
    equation = d1_box(text)
    if equation is None:
        tag = first_tag(text)
        equation = text if tag is None else tag.strip()
    for latex, sign in (("\\div", "/"), ("\\times", "*"), ("\\cdot", "*")):
        equation = equation.replace(latex, sign)
    for terms in _TERMS.finditer(equation):
        after = equation[terms.end() : terms.end() + 2]
        if len(after) == 2 and after[0] == "=" and after[1] in "0123456789. ":
            equation = terms.group().strip()
            break
    return solves_countdown(equation, numbers, target)


def solves_countdown(equation: str, numbers: list[int], target: int) -> bool:
    """Whether the runs of digits are the numbers, and the value in Python is within 1e-5 of the target."""
    if numbers_in(equation) != sorted(numbers):
        return False
    value = python_value(equation)
    try:
        return value is not None and abs(value - target) < TOLERANCE
    except OverflowError:
        return False


def sudoku_text(text: str) -> str:
    """16 characters: the text of the first rule that applies, without whitespace, padded with 0 or cut; else "".

    The five rules: the digits of a code fence after the first `<answer>`; the text between it and the next closing
    tag or end mark; the text between the first closing tag and an end mark; 16 digits before a closing tag; 16 digits
    alone.
    """
    first_open, first_close = text.find(OPEN), text.find(CLOSE)
    answer = ""
    if first_open >= 0:
        start = first_open + len(OPEN)
        fenced = _FENCED.search(text, start)
        answer = fenced.group(1).strip() if fenced else ""
        if not answer:
            end = _first_index(text, start, (*END_MARKS, CLOSE))
            answer = text[start:end].strip() if end is not None else ""
    if not answer and first_close >= 0:
        start = first_close + len(CLOSE)
        end = _first_index(text, start, END_MARKS)
        answer = text[start:end].strip()
    for rule in (_BEFORE_CLOSE, _ALONE):
        if not answer and (match := rule.search(text)):
            answer = match.group(1)
    answer = "".join(answer.split())
    return answer[:CELLS].ljust(CELLS, "0") if answer else ""


def _first_index(text: str, start: int, marks: tuple[str, ...]) -> int | None:
    indices = [index for mark in marks if (index := text.find(mark, start)) >= 0]
    return min(indices, default=None)


def num_correct_cells(answer: str, puzzle: str, solution: str) -> int:
    """The number of blank cells where an answer of 16 characters (or fewer) equals the solution."""
    return sum(a == s for a, p, s in zip(answer, puzzle, solution, strict=False) if p == "0")
