"""The rules of d1, with hand-computed results: each error that docs/grading.md lists."""

import time

import pytest

from stipule.tasks import d1_answers, d1_rewards
from stipule.tasks.d1_arithmetic import python_value
from stipule.tasks.d1_latex import d1_box, d1_equal, normal_form

PUZZLE, SOLVED = "0204032001400402", "1234432121433412"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\boxed{18}", 18.0),
        (r"\boxed{1,000}", 1.0),
        (r"\boxed{7} then \boxed{8}", 7.0),
        (r"\boxed{x} then \boxed{8}", 8.0),
        (r"\boxed{...} <answer>3 or 4</answer>", 4.0),
        (r"\boxed{120\text{ minutes}}", 120.0),
        (r"\boxed{-$10}", 10.0),
        ("\\boxed{803\n}", None),
        ("\\boxed{20\n</answer> <answer>\\boxed{20\n</answer>", 20.0),
        ("<answer>5</answer><answer>6</answer>", 5.0),
        ("<answer>none</answer>", None),
        ("18", None),
        ("", None),
    ],
)
def test_gsm8k_reads_the_first_box_with_a_number(text, value):
    assert d1_answers.gsm8k_value(text) == value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed 5$ \boxed{6}", "5"),
        (r"\fbox{5}", r"\fbox{5}"),
        ("no box <answer>4</answer>", "no box <answer>4</answer>"),
        (r"<answer>4</answer> \boxed{5", "4"),
        (r"\boxed{} <answer>4</answer>", "4"),
        (r"\boxed{5", ""),
    ],
)
def test_math_reads_the_last_box_else_the_whole_text(text, answer):
    assert d1_answers.math_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (r"\frac12", r"\frac{1}{2}", True),
        (r"\frac1{72}", r"\dfrac{1}{72}", True),
        ("0.5", r"\frac{1}{2}", True),
        ("1/2", r"\tfrac{1}{2}", True),
        (".5", "0.5", True),
        ("x=5", "5", True),
        (r"\sqrt2", r"\sqrt{2}", True),
        (r"90^\circ", "90", True),
        (r"10\%", r"\$10", True),
        (r"5\text{ cm}", "5", True),
        (r"\left( 1, 2 \right)", "(1,2)", True),
        ("x/y", "x/ y", False),
        ("0.25", r"\frac{1}{4}", False),
        (r"5\text{ cm}\text{ a}", "5", False),
        (r"\frac", r"\frac", True),
        (r"\sqrt", "", False),
        ("36.00", "36", False),
    ],
)
def test_equality_by_the_normal_form_and_its_errors(one, other, equal):
    assert d1_equal(one, other) == equal == d1_equal(other, one)


def test_unclosed_boxes_have_no_content():
    assert d1_box(r"\boxed{1{2}") is None
    assert normal_form("") == ""


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        (r"\boxed{3*(12-7)}", True),
        (r"\boxed{3*(12-7) = 15}", True),
        (r"\boxed{3 \times (12-7)}", True),
        ("3*(12-7)=15 and more", True),
        ("<answer>3*(12-7)</answer>", False),  # no box: the whole text, with its tags
        (r"<answer>3*(12-7)</answer> \boxed{", True),
        (r"\boxed{12-7+3}", False),
        (r"\boxed{3*(12-7)*1}", False),
        (r"\boxed{9**9**9}", False),
        ("", False),
    ],
)
def test_countdown_reads_the_left_side_of_an_equation(text, correct):
    assert d1_answers.is_countdown_correct(text, [3, 7, 12], 15) == correct


def test_countdown_accepts_any_python_arithmetic():
    assert d1_answers.solves_countdown("2**3-1", [1, 2, 3], 7)
    assert d1_answers.solves_countdown("3//2*1", [1, 2, 3], 1)
    assert d1_answers.solves_countdown("1.2*3", [1, 2, 3], 3.6)
    assert d1_answers.solves_countdown("-1+2+3", [1, 2, 3], 4)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "99**98**97",
        "1/0",
        "(" * 400,
        "1" * 499,
        "5(3)",
        "()",
        "07",
        "1 2",
        "...",
        "",
        "\u0661+1",
        "1.e",
        "9.**999",
    ],
)
def test_texts_without_a_value_are_fast(text):
    started = time.perf_counter()
    assert python_value(text) is None or text == "1" * 499
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        (f"<answer>\n{SOLVED}\n</answer>", 8),
        (f"<answer>```\n{SOLVED[:8]}\n{SOLVED[8:]}```</answer>", 8),
        (f"<answer>{SOLVED}<|eot_id|>", 8),
        (f"<answer>{SOLVED}", 8),  # rule 5: 16 digits alone
        (f"</answer> {SOLVED}", 8),
        (f"<answer></answer>x{SOLVED}</answer>", 2),  # shifted by one
        (f"<answer>{SOLVED[:4]}</answer>", 2),
        (f"<answer>{SOLVED}99</answer>", 8),
        (f"<answer>x{SOLVED}</answer>", 2),  # shifted by one
        ("", 0),
    ],
)
def test_sudoku_uses_the_first_pattern_that_matches(text, cells):
    assert PUZZLE.count("0") == 8
    assert d1_answers.num_correct_cells(d1_answers.sudoku_text(text), PUZZLE, SOLVED) == cells


CORRECT_RESPONSE = "<reasoning>\n" + "x" * 421 + "\n</reasoning>\n<answer>\n7\n</answer>"


def test_gsm8k_rewards_of_given_responses():
    parts = d1_rewards.gsm8k_parts(CORRECT_RESPONSE, "7")
    assert len(CORRECT_RESPONSE) == 467
    # All four marks; the penalty of the third is the whole text, that of the fourth is -1 character.
    assert parts["xml_count"] * 0.5 == pytest.approx(0.5 - 0.467 + 0.001)
    assert (parts["correctness"], parts["integer"], parts["soft_format"], parts["strict_format"]) == (1, 1, 0, 0)
    one_line = "<reasoning>x</reasoning><answer>7</answer>"
    assert d1_rewards.gsm8k_parts(one_line, "7")["soft_format"] == 1
    assert d1_rewards.gsm8k_parts("<reasoning>\nx\n</reasoning>\n<answer>\n7\n</answer>\n", "7")["strict_format"] == 1
    assert d1_rewards.gsm8k_parts("<answer>²</answer>", "2")["integer"] == 1
    assert d1_rewards.gsm8k_parts("<answer>1,080</answer>", "1,080")["correctness"] == 1
    assert d1_rewards.gsm8k_parts("<answer>1080</answer>", "1,080")["correctness"] == 0


def test_math_countdown_and_sudoku_rewards_of_given_responses():
    assert d1_rewards.math_parts(r"<answer>\boxed{5}</answer>", "5") == {"correctness": 1.0, "format": 0.75}
    assert d1_rewards.math_parts("6", "5") == {"correctness": 0.0, "format": 0.25}
    assert d1_rewards.countdown_parts("<answer>3*(12-7)</answer>", (3, 7, 12), 15) == {"solved": 1.0, "attempt": 1.0}
    assert d1_rewards.countdown_parts("<answer>?</answer>", (3, 7, 12), 15) == {"solved": 0.0, "attempt": 1.0}
    assert d1_rewards.countdown_parts("3*(12-7)", (3, 7, 12), 15) == {"solved": 0.0, "attempt": 0.0}
    first_half = f"<answer>{SOLVED[:8]}</answer>"
    assert d1_rewards.sudoku_parts(first_half, PUZZLE, SOLVED)["tagged_cells"] == PUZZLE[:8].count("0") / 8


def test_long_hostile_texts_are_fast():
    started = time.perf_counter()
    for piece in ("<answer>", "</answer>", r"\boxed{", "\\boxed{\n", "```", "1", " ", "<answer>```  ", "\\frac", "1="):
        text = piece * (1_000_000 // len(piece))
        d1_answers.gsm8k_value(text)
        d1_answers.is_math_correct(text, "5")
        d1_answers.is_countdown_correct(text, [1, 2, 3], 4)
        d1_answers.sudoku_text(text)
        d1_answers.last_tag(text)
        d1_rewards.gsm8k_parts("<reasoning>" + text, "5")
    assert time.perf_counter() - started < 10
