"""`<answer>` tags: the text of the last answer, and the spans of all answers."""

import re
from collections.abc import Iterable

from stipule.tasks.problem import Span

OPEN, CLOSE = "<answer>", "</answer>"

# Stripped around an answer.  str.strip() without an argument would also strip unusual Unicode separators.
WHITESPACE = " \t\r\n"


def answer_text(response: str) -> str | None:
    """Content of the last closed `<answer>` tag, stripped of whitespace, or None if no tag is closed.

    Of nested answers the innermost counts, because the last opening tag is used.
    d1 (Zhao et al. 2025) also reads a tag that is never closed; here such a response is truncated and has no answer.
    """
    start = response.rfind(OPEN, 0, max(response.rfind(CLOSE), 0))
    if start < 0:
        return None
    start += len(OPEN)
    return response[start : response.find(CLOSE, start)].strip(WHITESPACE)


def answer_spans(response: str) -> list[Span]:
    """Spans of all answers with their tags, sorted and disjoint.

    Nested answers are one span.  An answer that is never closed extends to the end.  A closing tag without an opening
    tag is a span too: as an anchor it would close any answer that the policy opens.
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
    """Sorted, disjoint, non-empty spans of the same characters; spans that touch are merged."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
