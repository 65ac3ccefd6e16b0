r"""The text inside `<answer>` tags and `\boxed{}`: all that the code of STP's authors keeps from being an anchor."""

import re

from stipule.tasks.answers import CLOSE, OPEN, merge_spans
from stipule.tasks.problem import Span, Task
from stipule.tasks.sudoku import TINY_PROMPTS

_CLOSED = re.compile(f"{OPEN}(.*?){CLOSE}", re.DOTALL)
_BRACE = re.compile(r"(?P<box>\\boxed\{)|[{}]")


def content_spans(response: str) -> list[Span]:
    r"""Spans of what closed `<answer>` tags and closed `\boxed{}` contain, sorted and disjoint.

    The tags, answers that are never closed, and copies of an answer elsewhere are outside. Every brace counts, with a
    backslash before it or without.
    """
    spans = [match.span(1) for match in _CLOSED.finditer(response)]
    opened: list[int | None] = []  # for each open brace the start of a box's content, or None
    for brace in _BRACE.finditer(response):
        if brace.group() != "}":
            opened.append(brace.end() if brace["box"] else None)
        elif opened and (start := opened.pop()) is not None:
            spans.append((start, brace.start()))
    return merge_spans(spans)


def has_answer_tags(task: Task) -> bool:
    """Whether responses have their answer in tags or a box; those to a prompt for tiny models have neither."""
    return getattr(task, "prompt", None) not in TINY_PROMPTS
