r"""Equality of two LaTeX answers in d1's evaluation: the last `\boxed{}`, then a normal form compared as text."""

import re

_NOISE = ("\n", "\\!")
_DROPPED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")


class _NoForm(Exception):
    """The published normaliser raises an error on this text; then the two texts are compared unchanged."""


def d1_box(text: str) -> str | None:
    r"""The content of the last `\boxed`; the whole text if there is none; None if it is never closed.

    Two errors of d1 are kept.  The form `\boxed 5` takes precedence over `\boxed{}` and extends to the next `$`.  A
    `\boxed` without a brace, and an `\fbox`, are returned with the command.
    """
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    start = text.rfind("\\boxed")
    if start < 0:
        start = text.rfind("\\fbox")
    if start < 0:
        return text
    depth = 0
    for brace in re.finditer("[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0 and brace.group() == "}":
            box = text[start : start + brace.end()]
            return box[len("\\boxed{") : -1] if box.startswith("\\boxed{") else box
    return None


def d1_equal(one: str, other: str) -> bool:
    """Whether the normal forms are equal; if one cannot be computed, whether the texts are equal."""
    try:
        return normal_form(one) == normal_form(other)
    except _NoForm:
        return one == other


def normal_form(text: str) -> str:
    r"""Remove spaces, sizes, degrees, dollars, percent signs and one unit on the right; brace fractions and roots.

    Raises _NoForm where the published code fails: two `\text{ ` units, a `\sqrt` or `\frac` at the very end, or a
    single slash that is not between whole numbers.
    """
    for noise in _NOISE:
        text = text.replace(noise, "")
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    kept, *units = text.split("\\text{ ")
    if len(units) > 1:
        raise _NoForm
    text = kept.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:  # "x = 5"
        text = sides[1]
    if not text:
        return ""
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    return _slash_as_fraction("\\frac{1}{2}" if text == "0.5" else text)


def _braced_roots(text: str) -> str:
    first, *rest = text.split("\\sqrt")
    if "" in rest:
        raise _NoForm
    return first + "".join("\\sqrt" + (tail if tail[0] == "{" else f"{{{tail[0]}}}{tail[1:]}") for tail in rest)


def _braced_fractions(text: str) -> str:
    r"""Braces for `\frac12` and `\frac1{72}`; the text is unchanged if only one character follows a `\frac`."""
    first, *rest = text.split("\\frac")
    pieces = [first]
    for tail in rest:
        if not tail:
            raise _NoForm
        if tail[0] != "{":
            if len(tail) < 2:
                return text
            tail = f"{{{tail[0]}}}" + (tail[1:] if tail[1] == "{" else f"{{{tail[1]}}}{tail[2:]}")
        pieces.append(tail)
    return "\\frac".join(pieces)


def _slash_as_fraction(text: str) -> str:
    sides = text.split("/")
    if len(sides) != 2:
        return text
    try:
        numerator, denominator = map(int, sides)
    except ValueError as cause:
        raise _NoForm from cause
    return f"\\frac{{{numerator}}}{{{denominator}}}" if text == f"{numerator}/{denominator}" else text
