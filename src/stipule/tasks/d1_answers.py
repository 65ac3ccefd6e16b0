r"""What d1's evaluation takes for the answer of a response (Zhao et al. 2025, `eval` of its published code), by task.

Every rule here reads in one pass what the published regular expressions read by backtracking, which a long response
would turn into hours.  The published evaluation reads responses with their special tokens; `END_MARKS` are LLaDA's.
docs/grading.md lists the rules and what they get wrong.
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
    """Content of the last of the tags that follow one another without overlap, or None."""
    content, start = None, text.find(OPEN)
    while start >= 0:
        end = text.find(CLOSE, start + len(OPEN))
        if end < 0:
            break
        content = text[start + len(OPEN) : end]
        start = text.find(OPEN, end)
    return content


def gsm8k_value(text: str) -> float | None:
    r"""The first `\boxed{}` with a number in it gives its first number ("1,000" is 1), else the first tag its last."""
    for content in _short_boxes(text):
        value = _as_float(content, place=0)
        if value is not None:
            return value
    tag = first_tag(text)
    return _as_float(tag.strip(), place=-1) if tag else None


def _short_boxes(text: str) -> list[str]:
    r"""Everything between a `\boxed{` and the next closing brace on the same line."""
    found, at, close, line = [], 0, 0, 0
    while (start := text.find("\\boxed{", at)) >= 0:
        inside = start + len("\\boxed{")
        if close < inside:
            close = text.find("}", inside)
        if close < 0:
            break
        if line < inside:
            line = text.find("\n", inside)
            line = len(text) if line < 0 else line
        if close < line:
            found.append(text[inside:close].strip())
            at = close + 1
        else:
            at = inside
    return found


def _as_float(text: str, place: int) -> float | None:
    if not text or set(text) == {"."}:
        return None
    try:
        return float(text)
    except ValueError:
        numbers = _NUMBER.findall(text)
        return float(numbers[place]) if numbers else None


def math_answer(text: str) -> str:
    """The last box, else the whole text; the first tag only where the last box is empty or never closed."""
    box = d1_box(text)
    if box:
        return box
    tag = first_tag(text)
    return tag.strip() if tag is not None else box or ""


def math_right(text: str, gold: str) -> bool:
    """Whether the answer and the gold one are equal after d1's normal form."""
    return d1_equal(math_answer(text), gold)


def countdown_right(text: str, numbers: list[int], target: int) -> bool:
    """The last box (else the whole text), cut to the left side of its first "terms = number", as Python sees it."""
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
    return uses_and_reaches(equation, numbers, target)


def uses_and_reaches(equation: str, numbers: list[int], target: int) -> bool:
    """Whether the runs of digits are the numbers, and Python's value is within 1e-5 of the target."""
    if numbers_in(equation) != sorted(numbers):
        return False
    value = python_value(equation)
    try:
        return value is not None and abs(value - target) < TOLERANCE
    except OverflowError:
        return False


def sudoku_text(text: str) -> str:
    """16 characters: what the first of five rules finds, blanks removed, padded with 0 and cut; "" if none does.

    The digits of a code fence after the first `<answer>`; else what lies between it and the next closing tag or end
    mark; else what follows the first closing tag up to an end mark; else 16 digits before a closing tag; else 16
    digits alone.
    """
    opened, closed = text.find(OPEN), text.find(CLOSE)
    found = ""
    if opened >= 0:
        fenced = _FENCED.search(text, opened + len(OPEN))
        found = fenced.group(1).strip() if fenced else ""
        if not found:
            inside = opened + len(OPEN)
            end = _first(text, inside, (*END_MARKS, CLOSE))
            found = text[inside:end].strip() if end is not None else ""
    if not found and closed >= 0:
        inside = closed + len(CLOSE)
        end = _first(text, inside, END_MARKS)
        found = text[inside:end].strip()
    for rule in (_BEFORE_CLOSE, _ALONE):
        if not found and (match := rule.search(text)):
            found = match.group(1)
    found = "".join(found.split())
    return found[:CELLS].ljust(CELLS, "0") if found else ""


def _first(text: str, start: int, marks: tuple[str, ...]) -> int | None:
    places = [place for mark in marks if (place := text.find(mark, start)) >= 0]
    return min(places, default=None)


def right_cells(answer: str, puzzle: str, solution: str) -> int:
    """Blank cells in which an answer of 16 characters (or none) agrees with the solution."""
    return sum(a == s for a, p, s in zip(answer, puzzle, solution, strict=False) if p == "0")
