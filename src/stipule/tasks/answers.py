"""Answer tags: the format that is asked for, what the last answer says, and where answers stand in a text."""

import re
from collections.abc import Iterable

from stipule.tasks.problem import Span

OPEN, CLOSE = "<answer>", "</answer>"

ANSWER_FORMAT = """\
Reply in exactly this form:
<reasoning>
your reasoning, step by step
</reasoning>
<answer>
your final answer
</answer>"""

# What people and models put round an answer.  Plain str.strip() would also take away exotic separators.
BLANKS = " \t\r\n"


def answer_text(response: str) -> str | None:
    """Content of the last closed `<answer>` tag without surrounding blanks, or None if no tag was closed.

    The last opening tag counts, so of nested answers the inner one does.
    d1 (Zhao et al. 2025) also reads a tag that was never closed; a response that was cut short has not answered here.
    """
    start = response.rfind(OPEN, 0, max(response.rfind(CLOSE), 0))
    if start < 0:
        return None
    start += len(OPEN)
    return response[start : response.find(CLOSE, start)].strip(BLANKS)


def answer_spans(response: str) -> list[Span]:
    """Spans of all answers with their tags, sorted and disjoint.

    Nested answers are one span; an answer that is never closed reaches to the end; a closing tag that closes nothing
    is a span of its own, because once fixed it would close whatever the policy opens.
    """
    spans: list[Span] = []
    depth, start = 0, 0
    for tag in re.finditer(f"{OPEN}|{CLOSE}", response):
        if depth == 0:
            start = tag.start()
        depth += 1 if tag.group() == OPEN else -1
        if depth <= 0:
            spans.append((start, tag.end()))
            depth = 0
    if depth > 0:
        spans.append((start, len(response)))
    return spans


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """The same characters as sorted, disjoint, non-empty spans that do not touch."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
