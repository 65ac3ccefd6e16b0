"""Arithmetic as d1's grader takes it: whatever Python accepts of digits, + - * / ( ) and points; nothing is run.

d1 (Zhao et al. 2025) hands the text to Python's `eval`.  Here the syntax tree is walked, and what would take long, or
is longer than MAX_LENGTH characters, has no value.
"""

import ast
import re
import warnings

MAX_LENGTH = 500
# Bits of a power: enough for every puzzle, and 9**9**9 stops here.
MAX_BITS = 4096

_ALLOWED = re.compile(r"[\d+\-*/().\s]+")

Number = int | float | complex


class _NoValue(Exception):
    """The text is no arithmetic, or too much of it."""


def numbers_in(text: str) -> list[int] | None:
    """All runs of digits as whole numbers, ascending; None if one is longer than 30 digits."""
    runs = re.findall(r"\d+", text)
    return sorted(map(int, runs)) if all(len(run) <= 30 for run in runs) else None


def python_value(text: str) -> Number | None:
    """What Python makes of the text, or None: with `**`, `//`, signs and decimals, in floats where it divides."""
    text = text.strip()
    if len(text) > MAX_LENGTH or not _ALLOWED.fullmatch(text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _walk(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError, ArithmeticError, _NoValue):
        return None


def _walk(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _walk(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if not isinstance(node, ast.BinOp):
        raise _NoValue
    left, right = _walk(node.left), _walk(node.right)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        return left / right
    if isinstance(node.op, ast.FloorDiv) and not isinstance(left, complex) and not isinstance(right, complex):
        return left // right
    if isinstance(node.op, ast.Pow):
        if isinstance(left, int) and isinstance(right, int) and abs(right) * left.bit_length() > MAX_BITS:
            raise _NoValue
        return left**right
    raise _NoValue
