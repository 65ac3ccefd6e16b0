r"""LaTeX answers in forms that math-verify reads right: mixed numbers as fractions, inequalities as intervals."""

import re

from stipule.tasks.number_parsing import LATEX_FRACTION, THOUSANDS, fraction_parts

_MIXED = re.compile(r"(?<![0-9.^_A-Za-z])([1-9][0-9]{0,29})(?:\\[ ,;!:]|[ ~])*\\frac\{([0-9]{1,30})\}\{([0-9]{1,30})\}")
_PLAIN_MIXED = re.compile(r"(?<![0-9./^_])([0-9]{1,30}) +([0-9]{1,30})/([1-9][0-9]{0,29})(?![0-9./])")
_TWO_NUMBERS = re.compile(r"[0-9](?:\\[ ,;!:]|[ ~\t\r\n])+[0-9]")
_ALL_REALS = re.compile(r"(?:\\(?:text|mathrm) ?\{ *)?[Aa]ll real(?: number)?s *\}?")
_DOTS = re.compile(r"\\[lc]?dots|\.\.\.|…")

_VARIABLE = r"(?:[A-Za-z]|\\[a-z]+)"
_LESS, _GREATER = (
    r"(?:<=?|\\leq?(?:slant)?(?![a-z])|\\lt(?![a-z])|≤)",
    r"(?:>=?|\\geq?(?:slant)?(?![a-z])|\\gt(?![a-z])|≥)",
)
_INEQUALITY = re.compile(
    rf"(?:([^<>=≤≥]+?) *({_LESS}|{_GREATER}))? *({_VARIABLE}) *(?:({_LESS}|{_GREATER}) *([^<>=≤≥]+))?"
)
_OR = re.compile(r"\\(?:text|mathrm) ?\{ *or *\}|(?<![A-Za-z])or(?![A-Za-z])|\\lor(?![a-z])|\\vee(?![a-z])")
_AND = re.compile(r"\\(?:text|mathrm) ?\{ *and *\}|(?<![A-Za-z])and(?![A-Za-z])|\\land(?![a-z])|\\wedge(?![a-z])")
_SPACE = re.compile(r"\\[ ,;!:]|\\q?quad(?![a-z])|[ ~\t\r\n]+")
_SET_BUILDER = re.compile(
    rf"\\\{{ *({_VARIABLE}) *(?:\\in *\\mathbb *\{{?R\}}?)? *(?::|\||\\mid|\\colon|\\vert) *(.+)\\\}}", re.DOTALL
)
_MEMBER = re.compile(rf"{_VARIABLE} *(?:\\in(?![a-z])|∈) *(.+)", re.DOTALL)


def canonical_latex(text: str) -> str | None:
    r"""The text with `\frac{a}{b}` for every form of a fraction of digits, and mixed numbers as such fractions.

    None if two numbers stand side by side that are no mixed number with a proper fraction: that is no one number.
    """
    is_mixed = True

    def improper(match: re.Match[str]) -> str:
        nonlocal is_mixed
        whole, top, bottom = map(int, match.groups())
        is_mixed = is_mixed and top < bottom
        return f"\\frac{{{whole * bottom + top}}}{{{bottom}}}"

    text = _ALL_REALS.sub(r"\\mathbb{R}", THOUSANDS.sub(",", text))
    text = LATEX_FRACTION.sub(lambda match: "\\frac{{{}}}{{{}}}".format(*fraction_parts(match)), text)
    text = _PLAIN_MIXED.sub(improper, _MIXED.sub(improper, text))
    return text if is_mixed and not _TWO_NUMBERS.search(text) else None


def has_dots(text: str) -> bool:
    """Whether the answer leaves something out (1, 2, ...), which no parser can fill in."""
    return bool(_DOTS.search(text))


def squeeze(text: str) -> str:
    """The text without spaces."""
    return _SPACE.sub("", text)


def solution_set(text: str) -> tuple[str, str] | None:
    r"""(variable, set) of inequalities in one variable: `x \le 3 \text{ or } x > 5` is `(-\infty,3]\cup(5,\infty)`.

    Also of a set such as `\{x : x > 5\}`. None for any other text.
    """
    text = text.replace("\\left", "").replace("\\right", "")
    builder = _SET_BUILDER.fullmatch(text.strip())
    if builder:
        text = builder.group(2)
    pieces = [_interval(_SPACE.sub(" ", piece)) for piece in _OR.split(text)]
    intervals = [piece for piece in pieces if piece is not None]
    variables = {variable for variable, _ in intervals} | ({builder.group(1)} if builder else set())
    if len(intervals) < len(pieces) or len(variables) != 1:
        return None
    return variables.pop(), "\\cup".join(interval for _, interval in intervals)


def without_membership(text: str) -> str:
    r"""The set of `x \in S`; another text unchanged."""
    member = _MEMBER.fullmatch(text.strip())
    return member.group(1) if member else text


def _interval(text: str) -> tuple[str, str] | None:
    """(variable, interval) of inequalities that all hold; at most one of them bounds the variable on each side."""
    variables, low, high = set(), "(-\\infty", "\\infty)"
    for part in _AND.split(text):
        match = _INEQUALITY.fullmatch(part.strip())
        if match is None or not (match.group(2) or match.group(4)):
            return None
        left, left_sign, variable, right_sign, right = match.groups()
        variables.add(variable)
        for sign, bound, is_left in ((left_sign, left, True), (right_sign, right, False)):
            if sign is None:
                continue
            if _mentions(bound, variable):
                return None
            is_lower = bool(re.fullmatch(_LESS, sign)) == is_left
            closed = sign in ("≤", "≥") or "=" in sign or "e" in sign
            if is_lower and low == "(-\\infty":
                low = ("[" if closed else "(") + bound.strip()
            elif not is_lower and high == "\\infty)":
                high = bound.strip() + ("]" if closed else ")")
            else:
                return None
    return (variables.pop(), f"{low},{high}") if len(variables) == 1 else None


def _mentions(bound: str, variable: str) -> bool:
    return variable in re.findall(r"\\[A-Za-z]+|[A-Za-z]", bound)
