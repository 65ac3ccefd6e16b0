"""When d1's evaluation calls two LaTeX answers equal: the last box, then a normal form compared as text."""

import re

_NOISE = ("\n", "\\!")
_DROPPED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")


class _NoForm(Exception):
    """The published normaliser fails on the text; then the two texts are compared as they are."""


def d1_box(text: str) -> str | None:
    r"""The content of the last `\boxed`, the whole text if there is none, None if it is never closed.

    Two quirks are kept: the older form `\boxed 5` wins over every braced one and reaches to the next `$`; and what
    follows `\boxed` other than a brace, or an `\fbox`, is returned with its command.
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
    """Equal normal forms; equal texts where either has none."""
    try:
        return normal_form(one) == normal_form(other)
    except _NoForm:
        return one == other


def normal_form(text: str) -> str:
    r"""Spaces, sizes, degrees, dollars, percent signs and one unit on the right go; fractions and roots get braces.

    Raises where the published code does: two `\text{ ` units, a `\sqrt` or `\frac` at the very end, and a single slash
    between anything but whole numbers.
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
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def _braced_fractions(text: str) -> str:
    r"""`\frac12` and `\frac1{72}` with braces; unchanged as a whole where one `\frac` has a single character left."""
    first, *rest = text.split("\\frac")
    built = [first]
    for part in rest:
        if not part:
            raise _NoForm
        if part[0] != "{":
            if len(part) < 2:
                return text
            part = f"{{{part[0]}}}" + (part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}")
        built.append(part)
    return "\\frac".join(built)


def _slash_as_fraction(text: str) -> str:
    sides = text.split("/")
    if len(sides) != 2:
        return text
    try:
        above, below = map(int, sides)
    except ValueError as cause:
        raise _NoForm from cause
    return f"\\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text
