r"""`\boxed{}`: the content of the last one, the spans of all of them, and the final answer of a response."""

import re

from stipule.tasks.answer_markup import strip_markup
from stipule.tasks.answers import WHITESPACE, answer_text
from stipule.tasks.problem import Span

_BRACE = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)


def _find_boxes(text: str) -> list[tuple[int, int | None]]:
    r"""(start, end) of all outermost boxes, in one pass; end is None if never closed.  `\{` and `\}` do not count."""
    boxes: list[tuple[int, int | None]] = []
    start, depth = None, 0
    for brace in _BRACE.finditer(text):
        if brace["box"] and start is None:
            start, depth = brace.start(), 1
        elif start is not None and (brace["box"] or brace.group() in "{}"):
            depth += -1 if brace.group() == "}" else 1
            if depth == 0:
                boxes.append((start, brace.end()))
                start = None
    if start is not None:
        boxes.append((start, None))
    return boxes


def last_boxed(text: str) -> str | None:
    r"""Content of the last closed `\boxed{}`, stripped of whitespace, or None."""
    closed = [(start, end) for start, end in _find_boxes(text) if end is not None]
    if not closed:
        return None
    start, end = closed[-1]
    return text[text.index("{", start) + 1 : end - 1].strip(WHITESPACE)


def boxed_spans(text: str) -> list[Span]:
    """Spans of all boxes; a box that is never closed extends to the end."""
    return [(start, len(text) if end is None else end) for start, end in _find_boxes(text)]


def final_answer(response: str) -> str | None:
    r"""The answer of a response under the strict rules, or None.

    The content of the last closed `<answer>` tag, or the last `\boxed{}` in it; without a closed tag, the last
    `\boxed{}` of the response. Markup around the answer is removed.
    """
    answer = answer_text(response)
    answer = last_boxed(response) if answer is None else last_boxed(answer) or answer
    return None if answer is None else strip_markup(answer)
