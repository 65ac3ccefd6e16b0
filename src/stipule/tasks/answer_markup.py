r"""Markup around an answer that does not change it: bold and other fonts, math delimiters, a full stop."""

import re

from stipule.tasks.answers import WHITESPACE

# A longer text is no short answer; every round below reads the whole text.
MAX_LENGTH = 500

_PAIRS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"), ("*", "*"), ("`", "`"))
_TAGS = re.compile(r"<(b|strong|i|em)>([^<>]*)</\1>")
_FONT = r"\\(?:text(?:bf|it|rm|sf|tt|sl|normal)|emph|underline|math(?:bf|it|rm|sf|tt)|boldsymbol|bm|boxed|fbox|mbox)"
_WRAPPED = re.compile(rf"(?:{_FONT}|\\(?:text)?color ?\{{[a-zA-Z]*\}}) ?\{{(.*)\}}|\{{(.*)\}}", re.DOTALL)
_SIZE = re.compile(r"(\{?)\\(?:bf|bfseries|it|em|sf|displaystyle|large|Large|LARGE|huge|Huge)(?![A-Za-z]) *")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}")


def strip_markup(text: str) -> str:
    r"""The answer without the markup that is around the whole of it: `**73**`, `$73$`, `\textbf{73}.` are 73.

    A power (`2**3`) and markup of a part are left as they are. Words in a font become `\text{...}`, because LaTeX
    reads bare words as products of letters.
    """
    text = text.strip(WHITESPACE)
    while len(text) <= MAX_LENGTH:
        inner = _strip_once(text).strip(WHITESPACE)
        if inner == text:
            break
        text = inner
    return text


def _strip_once(text: str) -> str:
    if text.endswith(".") and not text.endswith(("..", "\\right.")):
        return text[:-1]
    for opening, closing in _PAIRS:
        inner = text[len(opening) : -len(closing)]
        is_pair = len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing)
        if is_pair and opening not in inner and not inner.endswith("\\"):
            return inner
    if tag := _TAGS.fullmatch(text):
        return tag.group(2)
    if size := _SIZE.match(text):
        return size.group(1) + text[size.end() :]
    wrapped = _WRAPPED.fullmatch(text)
    if wrapped is None:
        return text
    inner = wrapped.group(1) if wrapped.group(1) is not None else wrapped.group(2)
    if not _is_balanced(inner):
        return text  # {a}+{b}: the first brace does not belong to the last
    return f"\\text{{{inner}}}" if _WORD.search(inner) and text.startswith("\\") and "boxed" not in text[:7] else inner


def _is_balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += (brace == "{") - (brace == "}")
        if depth < 0:
            return False
    return depth == 0
