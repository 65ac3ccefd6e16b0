"""Parser of untrusted arithmetic: exact values of expressions with + - * / and parentheses only."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from stipule.tasks.answers import WHITESPACE
from stipule.tasks.problem import Span

# An expression of four three-digit numbers, with parentheses and spaces, stays far below both limits.
MAX_LENGTH = 200
MAX_DEPTH = 20

# A number of two or more digits may not start with 0.  Bare [0-9] because \d also matches digits of other scripts.
_TOKEN = re.compile(rf"[{WHITESPACE}]*(0|[1-9][0-9]*|[-+*/()])")

# An expression in free text; models also write typographic or LaTeX signs.
_RUN = re.compile(r"(?:[0-9+\-*/()\s×÷−]|\\times|\\div|\\cdot)+")


@dataclass(frozen=True, slots=True)
class Expression:
    """A well-formed expression: its exact value (None after a division by zero) and its numbers in order."""

    value: Fraction | None
    numbers: tuple[int, ...]

    def uses(self, numbers: Sequence[int]) -> bool:
        """Whether the expression has exactly these numbers, each as often as given."""
        return Counter(self.numbers) == Counter(numbers)


class _Malformed(Exception):
    """The text is not an expression."""


def parse_expression(text: str) -> Expression | None:
    """Parse a text; None if it is not an expression.

    expression = term {("+" | "-") term};  term = factor {("*" | "/") factor};  factor = number | "(" expression ")".
    Numbers are unsigned integers: no sign, point, exponent, underscore or leading zero.
    None beyond MAX_LENGTH characters or MAX_DEPTH nested parentheses, so that parsing time is bounded.
    """
    tokens = _tokens(text.strip(WHITESPACE)) if len(text) <= MAX_LENGTH else None
    if not tokens:
        return None
    parser = _Parser(tokens)
    try:
        value = parser.sum(depth=0)
    except _Malformed:
        return None
    if parser.remaining:
        return None
    return Expression(value, tuple(parser.numbers))


def spans_with_all(text: str, numbers: Sequence[int]) -> list[Span]:
    """Spans of arithmetic in free text that contain all of `numbers`.

    Deliberately wide: a span is a whole run of digits and signs, well-formed or not.
    """
    spans = []
    for run in _RUN.finditer(text):
        # Compared as text: converting a million digits to an integer is slow.
        counts = Counter(literal.lstrip("0") or "0" for literal in re.findall("[0-9]+", run.group()))
        if counts >= Counter(str(number) for number in numbers):
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
    """Recursive descent; every method removes its tokens from `remaining` and returns their value."""

    def __init__(self, tokens: list[str]) -> None:
        self.remaining = tokens[::-1]  # next token last
        self.numbers: list[int] = []

    def sum(self, depth: int) -> Fraction | None:
        value = self.product(depth)
        while self.remaining and self.remaining[-1] in "+-":
            value = _apply(self.remaining.pop(), value, self.product(depth))
        return value

    def product(self, depth: int) -> Fraction | None:
        value = self.factor(depth)
        while self.remaining and self.remaining[-1] in "*/":
            value = _apply(self.remaining.pop(), value, self.factor(depth))
        return value

    def factor(self, depth: int) -> Fraction | None:
        token = self.remaining.pop() if self.remaining else ""
        if token.isdigit():
            self.numbers.append(int(token))
            return Fraction(token)
        if token != "(" or depth == MAX_DEPTH:
            raise _Malformed
        value = self.sum(depth + 1)
        if not self.remaining or self.remaining.pop() != ")":
            raise _Malformed
        return value


def _apply(sign: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    """The value of `left sign right`; None if an operand is None or the divisor is 0."""
    if left is None or right is None or (sign == "/" and right == 0):
        return None
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    return left * right if sign == "*" else left / right
