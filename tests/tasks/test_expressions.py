from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stipule.tasks.expressions import MAX_DEPTH, MAX_LENGTH, parse_expression, spans_with_all

space = st.sampled_from(["", "", "", " ", "\n"])


@st.composite
def expression_trees(draw, depth=3):
    """(text with every inner node in parentheses, exact value or None, numbers) of a random tree."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 99))
        return str(number), Fraction(number), [number]
    left, a, first = draw(expression_trees(depth=depth - 1))
    right, b, second = draw(expression_trees(depth=depth - 1))
    sign = draw(st.sampled_from("+-*/"))
    if a is None or b is None or (sign == "/" and b == 0):
        value = None
    else:
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / (b or 1)}[sign]
    text = f"({left}{draw(space)}{sign}{draw(space)}{right})"
    return text, value, first + second


@given(expression_trees())
def test_the_text_of_a_tree_has_the_value_of_the_tree(tree):
    text, value, numbers = tree
    if len(text) > MAX_LENGTH:
        return
    expression = parse_expression(text)
    assert expression is not None
    assert (expression.value, list(expression.numbers)) == (value, numbers)


@given(st.lists(st.integers(1, 99), min_size=1, max_size=7), st.data())
def test_precedence_equals_python(numbers, data):
    signs = [data.draw(st.sampled_from("+-*/")) for _ in numbers[1:]]
    text = str(numbers[0]) + "".join(f"{sign}{number}" for sign, number in zip(signs, numbers[1:], strict=True))
    exact = str(Fraction(numbers[0])).join(["F(", ")"]) + "".join(
        f"{sign}F({number})" for sign, number in zip(signs, numbers[1:], strict=True)
    )
    expression = parse_expression(text)
    assert expression is not None
    # Safe: the test builds this text from integers and four signs.
    assert expression.value == eval(exact, {"F": Fraction})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/3*3", Fraction(1)),
        ("10-4-3", Fraction(3)),
        ("2-3*4", Fraction(-10)),
        ("8/4/2", Fraction(1)),
        ("8/(3-8/3)", Fraction(24)),
        (" ( 1 + 2 ) ", Fraction(3)),
        ("0", Fraction(0)),
        ("1/0", None),
        ("1/(2-2)*0", None),
    ],
)
def test_values_are_exact(text, value):
    expression = parse_expression(text)
    assert expression is not None and expression.value == value


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "()", "1+", "+1", "-1", "1--1", "1+-2", "(1", "1)", ")(", "1 2", "(1)(2)", "1(2)", "1=1", "1,2"),
        *("2**3", "7//2", "7%2", "9**9**9", "1.2*3", "1e3", "1_0", "007", "00", "0x1", "1j", "True", "a", "1;2"),
        *("__import__('os')", "().__class__", "1\x00", "1 # 2", "x:=1", "1 if 1 else 2", "\u0663+1", "\u00b2+1"),
        *("1\u202e+2", "1\u00d72", "\uff11+1", "1\u2212 1", "1\u00a0+1", "1\x1f+1"),
    ],
)
def test_any_other_text_is_not_an_expression(text):
    assert parse_expression(text) is None


@pytest.mark.parametrize(
    "text",
    ["(" * 100_000, "(" * 100_000 + "1" + ")" * 100_000, "1" * 1_000_000, "1+" * 500_000 + "1", "9*" * 90 + "9" * 90],
)
def test_very_long_texts_are_not_expressions(text):
    assert parse_expression(text) is None


def test_the_limits_of_depth_and_length_are_exact():
    assert parse_expression("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH) is not None
    assert parse_expression("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1)) is None
    assert parse_expression("9" * MAX_LENGTH) is not None
    assert parse_expression("9" * (MAX_LENGTH + 1)) is None


@given(st.text(max_size=30) | st.text("0123456789+-*/() ", max_size=30))
def test_any_text_can_be_parsed(text):
    expression = parse_expression(text)
    assert expression is None or all(number >= 0 for number in expression.numbers)


def test_each_number_must_be_used_as_often_as_given():
    expression = parse_expression("90-43+90")
    assert expression is not None
    assert expression.uses([90, 90, 43])
    assert not expression.uses([90, 43])
    assert not expression.uses([90, 90, 90, 43])


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("so 55 - 53 + 49 = 51", ["55 - 53 + 49"]),
        ("55 - 53 = 2; 2 + 49 = 51", []),
        (r"\boxed{(55-53)*49}", ["(55-53)*49"]),
        (r"$55 \times 53 \div 49$", [r"55 \times 53 \div 49"]),
        ("55 \u00d7 53 \u2212 49.", ["55 \u00d7 53 \u2212 49"]),
        ("use 55, 53, 49", []),
        ("555+53+49", []),
        ("49+55+53+1 or 53*55/49", ["49+55+53+1", "53*55/49"]),
        ("", []),
        ("1" * 1_000_000, []),
    ],
)
def test_spans_are_arithmetic_with_every_number(text, spans):
    assert [text[start:end] for start, end in spans_with_all(text, (49, 55, 53))] == spans
