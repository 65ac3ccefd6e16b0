r"""`\boxed{}`: the last one's content, where boxes stand, and the final answer of a response."""

import re

from stipule.tasks.answers import BLANKS, answer_text
from stipule.tasks.problem import Span

_OPEN = "\\boxed{"
_BRACE = re.compile(r"\\boxed\{|\\.|[{}]", re.DOTALL)


def _boxes(text: str) -> list[tuple[int, int | None]]:
    r"""Start and end (None: never closed) of all outermost boxes, in one pass; `\{` and `\}` are no braces."""
    found: list[tuple[int, int | None]] = []
    start, depth = None, 0
    for mark in _BRACE.finditer(text):
        if mark.group() == _OPEN and start is None:
            start, depth = mark.start(), 1
        elif start is not None and mark.group() in (_OPEN, "{", "}"):
            depth += -1 if mark.group() == "}" else 1
            if depth == 0:
                found.append((start, mark.end()))
                start = None
    if start is not None:
        found.append((start, None))
    return found


def last_boxed(text: str) -> str | None:
    r"""Content of the last closed `\boxed{}` without surrounding blanks, or None."""
    closed = [(start, end) for start, end in _boxes(text) if end is not None]
    if not closed:
        return None
    start, end = closed[-1]
    return text[start + len(_OPEN) : end - 1].strip(BLANKS)


def boxed_spans(text: str) -> list[Span]:
    """Spans of all boxes; one that is never closed reaches to the end."""
    return [(start, len(text) if end is None else end) for start, end in _boxes(text)]


def final_answer(response: str) -> str | None:
    r"""What a response gives as its answer under the strict rules, or None.

    The content of the last closed `<answer>` tag, or the last box in it; without such a tag the last box of the
    response.
    """
    answer = answer_text(response)
    return last_boxed(response) if answer is None else last_boxed(answer) or answer
