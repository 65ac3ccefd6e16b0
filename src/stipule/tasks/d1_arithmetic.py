"""Arithmetic of d1's grader: any Python expression of digits, + - * / ( ) and points, without `eval`.

d1 (Zhao et al. 2025) passes the text to Python's `eval`.  Here the syntax tree is evaluated.  A text of more than
MAX_LENGTH characters, or with a power of more than MAX_BITS bits, has no value.
"""

import ast
import re
import warnings

MAX_LENGTH = 500
# Enough for every puzzle; 9**9**9 is far above it.
MAX_BITS = 4096

_ALLOWED = re.compile(r"[\d+\-*/().\s]+")

Number = int | float | complex


class _NoValue(Exception):
    """The text is not arithmetic, or exceeds a limit."""


def numbers_in(text: str) -> list[int] | None:
    """All runs of digits as integers, ascending; None if one has more than 30 digits."""
    runs = re.findall(r"\d+", text)
    return sorted(map(int, runs)) if all(len(run) <= 30 for run in runs) else None


def python_value(text: str) -> Number | None:
    """The value of the text in Python (`**`, `//`, signs and decimals included; `/` gives floats), or None."""
    text = text.strip()
    if len(text) > MAX_LENGTH or not _ALLOWED.fullmatch(text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError, ArithmeticError, _NoValue):
        return None


def _evaluate(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _evaluate(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if not isinstance(node, ast.BinOp):
        raise _NoValue
    left, right = _evaluate(node.left), _evaluate(node.right)
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
