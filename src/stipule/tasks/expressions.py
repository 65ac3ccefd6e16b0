"""Arithmetic on untrusted text: exact values over + - * / and parentheses, and nothing else."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from stipule.tasks.answers import BLANKS
from stipule.tasks.problem import Span

# Four numbers of three digits with every parenthesis and blank anyone would write stay far below both limits.
MAX_LENGTH = 200
MAX_DEPTH = 20

# A number of two or more digits may not start with 0.  Bare [0-9] because \d also matches digits of other scripts.
_TOKEN = re.compile(rf"[{BLANKS}]*(0|[1-9][0-9]*|[-+*/()])")

# What an expression looks like in free text; a model's prose also writes it with typographic or LaTeX signs.
_RUN = re.compile(r"(?:[0-9+\-*/()\s×÷−]|\\times|\\div|\\cdot)+")


@dataclass(frozen=True, slots=True)
class Expression:
    """A well-formed expression: its exact value (None after a division by zero) and its numbers as written."""

    value: Fraction | None
    numbers: tuple[int, ...]

    def uses(self, numbers: Sequence[int]) -> bool:
        """Whether each of `numbers` is used exactly as often as it is given."""
        return Counter(self.numbers) == Counter(numbers)


class _Malformed(Exception):
    """The text is not an expression."""


def parse_expression(text: str) -> Expression | None:
    """The expression that `text` is, or None if it is none.

    expression = term {("+" | "-") term};  term = factor {("*" | "/") factor};  factor = number | "(" expression ")".
    Numbers are unsigned, whole and plainly written: no sign, point, exponent, underscore or leading zero.
    Texts beyond MAX_LENGTH characters or MAX_DEPTH parentheses are no expressions, so the work is bounded.
    """
    tokens = _tokens(text.strip(BLANKS)) if len(text) <= MAX_LENGTH else None
    if not tokens:
        return None
    parser = _Parser(tokens)
    try:
        value = parser.sum(depth=0)
    except _Malformed:
        return None
    if parser.rest:
        return None
    return Expression(value, tuple(parser.numbers))


def spans_with_all(text: str, numbers: Sequence[int]) -> list[Span]:
    """Spans of arithmetic in free text in which all of `numbers` occur.

    Deliberately wide: the run around an expression counts whole, well-formed or not.
    """
    spans = []
    for run in _RUN.finditer(text):
        # Compared as text: a run of a million digits is not worth an integer.
        written = Counter(literal.lstrip("0") or "0" for literal in re.findall("[0-9]+", run.group()))
        if written >= Counter(str(number) for number in numbers):
            start = run.start() + len(run.group()) - len(run.group().lstrip())
            spans.append((start, run.end() - (len(run.group()) - len(run.group().rstrip()))))
    return spans


def _tokens(text: str) -> list[str] | None:
    tokens, position = [], 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        tokens.append(token.group(1))
        position = token.end()
    return tokens


class _Parser:
    """Recursive descent; every method takes its text from the front of what is left and returns its value."""

    def __init__(self, tokens: list[str]) -> None:
        self.rest = tokens[::-1]  # next token last
        self.numbers: list[int] = []

    def sum(self, depth: int) -> Fraction | None:
        value = self.product(depth)
        while self.rest and self.rest[-1] in "+-":
            value = _apply(self.rest.pop(), value, self.product(depth))
        return value

    def product(self, depth: int) -> Fraction | None:
        value = self.factor(depth)
        while self.rest and self.rest[-1] in "*/":
            value = _apply(self.rest.pop(), value, self.factor(depth))
        return value

    def factor(self, depth: int) -> Fraction | None:
        token = self.rest.pop() if self.rest else ""
        if token.isdigit():
            self.numbers.append(int(token))
            return Fraction(token)
        if token != "(" or depth == MAX_DEPTH:
            raise _Malformed
        value = self.sum(depth + 1)
        if not self.rest or self.rest.pop() != ")":
            raise _Malformed
        return value


def _apply(sign: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    """left sign right; None (no value) is catching."""
    if left is None or right is None or (sign == "/" and right == 0):
        return None
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    return left * right if sign == "*" else left / right
