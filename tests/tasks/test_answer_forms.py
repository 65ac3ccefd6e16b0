"""Answers written in other forms, under the strict rules: right ones are graded right, and wrong ones wrong."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stipule.tasks.answer_markup import strip_markup
from stipule.tasks.countdown import Countdown
from stipule.tasks.equivalence import equivalent
from stipule.tasks.gsm8k import Gsm8k
from stipule.tasks.latex_answers import solution_set
from stipule.tasks.number_parsing import number_spans, plain_number


@given(st.integers(0, 99), st.integers(0, 20), st.integers(1, 20))
def test_a_mixed_number_is_a_whole_number_and_a_proper_fraction(whole, top, bottom):
    value = whole + Fraction(top, bottom) if top < bottom else None
    for text in (
        f"{whole}\\frac{{{top}}}{{{bottom}}}",
        f"{whole} \\dfrac{{{top}}}{{{bottom}}}",
        f"{whole} {top}/{bottom}",
    ):
        assert plain_number(text) == value
        assert plain_number("-" + text) == (None if value is None else -value)
        assert value is None or [text] == [text[a:b] for a, b in number_spans(text, value) if b - a == len(text)]


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (r"\frac{7}{2}", ("3½", r"x = 3\frac{1}{2}", r"3\frac{1}{2}\text{ cups}"), (r"\frac{31}{2}", "3 1/3")),
        (r"\frac{7\pi}{2}", (r"3\frac{1}{2}\pi", r"3.5\pi"), (r"\frac{3\pi}{2}",)),
        ("5", (r"\text{5}", "**5**", "5."), (r"2\frac{6}{2}", "2 3", "**2**3")),
        (r"\frac{1}{3}", (r"0.\overline{3}", r"33\frac{1}{3}\%"), ("0.333333", "0.3333333333333333")),
        ("12.5", (r"12.5\%",), (r"1.25\%",)),
        ("1000", (r"1\,000", r"1{,}000", "10^3"), ("1 0 0 0",)),
        ("0", (r"\sin(\pi)",), (r"1\,000", "10^{-20}", r"e^{-50}")),
        (r"e^{-50}", (r"\frac{1}{e^{50}}",), (r"e^{-51}",)),
        (r"(0,10^{-20})", (r"(0,\frac{1}{10^{20}})",), (r"(0,10^{-21})",)),
        (r"\sqrt{2}", (r"\frac{2}{\sqrt{2}}",), ("1.414214", r"\sqrt{2}+10^{-30}")),
        (r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", (), (r"\frac{1}{3 \cdot 2^{2006}}",)),
        (r"1, 2, \ldots, n", (r"1,2,\ldots,n",), (r"1, 3, \ldots, 2n-1",)),
        (r"\{1,2\}", (r"\{2,1\}", "1,2"), ("(1,2)", "[1,2]", r"\{1,3\}")),
        (r"(-\infty,3)", ("x<3", "3>x", r"x \in (-\infty,3)", r"\{x : x < 3\}"), (r"x \le 3", "x>3", "3")),
        (r"(-2,5)", ("-2<x<5", "5>x>-2", r"x>-2 \text{ and } x<5"), (r"-2<x\le 5", "-5<x<2", "x<5")),
        ("-2<x<5", ("5 > x > -2", "(-2,5)"), ("-2<y<5", "[-2,5]")),
        (r"(-\infty,3]\cup(5,\infty)", (r"x \le 3 \text{ or } x > 5", r"5<x \text{ or } 3 \ge x"),
         (r"x < 3 \text{ or } x > 5",)),
        (r"[\sqrt{2},\infty)", (r"x \geqslant \sqrt{2}",), (r"x \ge \sqrt{3}",)),
        (r"(-\infty,\infty)", (r"\text{all real numbers}", r"\mathbb{R}"), (r"[0,\infty)",)),
    ],
)  # fmt: skip
def test_math_grades_other_forms(gold, right, wrong):
    assert {answer: equivalent(gold, answer) for answer in (*right, *wrong)} == (
        dict.fromkeys(right, "right") | dict.fromkeys(wrong, "wrong")
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("**73**", "73"),
        ("**73.**", "73"),
        ("$73$.", "73"),
        (r"\textbf{73}", "73"),
        (r"{\bf 73}", "73"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\textbf{Alice and Bob}", r"\text{Alice and Bob}"),
        ("2**3", "2**3"),
        ("**2**3**", "**2**3**"),
        (r"{a}+{b}", r"{a}+{b}"),
        ("1, 2, ...", "1, 2, ..."),
        (r"\left\{ x \right.", r"\left\{ x \right."),
        ("*" * 100_000, "*" * 100_000),
    ],
)
def test_markup_around_the_whole_answer_is_removed(text, answer):
    assert strip_markup(text) == answer


def test_bold_and_a_full_stop_do_not_change_a_grade():
    task = Gsm8k()
    problem = task.problem("q", "73")
    right = ("**73**", "73.", r"\boxed{\textbf{73}}", "**73** apples", r"\boxed {73}")
    wrong = ("**7**3", "**73** or **74**", "7**3")
    for answer in (*right, *wrong):
        assert task.grade(problem, f"<answer>{answer}</answer>").correct == (answer in right), answer
    assert not task.grade(task.problem("q", "15.5"), r"<answer>3\frac{1}{2}</answer>").correct
    countdown = Countdown()
    assert countdown.grade(countdown.problem((3, 7, 12), 15), "<answer>**3*(12-7).**</answer>").correct


inequalities = st.lists(
    st.tuples(st.sampled_from(["<", ">", r"\le ", r"\ge "]), st.integers(-4, 4), st.booleans()), min_size=1, max_size=2
)


def holds(sign, x, bound):
    return {"<": x < bound, ">": x > bound, r"\le ": x <= bound, r"\ge ": x >= bound}[sign]


def contains(interval, x):
    low, high = re.fullmatch(r"[\[(](.+),(.+)[\])]", interval).groups()
    above = low == "-\\infty" or x > int(low) or (interval[0] == "[" and x == int(low))
    return above and (high == "\\infty" or x < int(high) or (interval[-1] == "]" and x == int(high)))


@given(inequalities)
def test_a_solution_set_holds_exactly_the_numbers_that_solve_one_of_the_inequalities(terms):
    mirrored = {"<": ">", ">": "<", r"\le ": r"\ge ", r"\ge ": r"\le "}
    texts = [f"{bound}{mirrored[sign]}x" if swap else f"x{sign}{bound}" for sign, bound, swap in terms]
    variable, union = solution_set(r" \text{ or } ".join(texts))
    assert variable == "x"
    for halves in range(-10, 11):
        x = Fraction(halves, 2)
        expected = any(holds(sign, x, bound) for sign, bound, _ in terms)
        assert any(contains(interval, x) for interval in union.split("\\cup")) == expected
