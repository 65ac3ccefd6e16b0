"""Hand-written hostile responses and thousands of fuzzed ones, for every task and both gradings.

No response may crash or hang a grader, or be graded correct when an independent oracle says that it is wrong.
"""

import ast
import itertools
import random
import re
import resource
import time
from collections import Counter
from fractions import Fraction

import pytest

from stipule.tasks import equivalence
from stipule.tasks.arithmetic import Arithmetic
from stipule.tasks.countdown import Countdown
from stipule.tasks.gsm8k import Gsm8k
from stipule.tasks.math import Math
from stipule.tasks.sudoku import Sudoku

PUZZLE, SOLVED = "0204032001400402", "1234432121433412"
NUMBERS, TARGET = (3, 7, 12), 15

CORES = [
    "9**9**9",
    "99**98**97",
    "__import__('os').system('touch owned')",
    "1.2*3",
    "12\u00b2",
    "\u00b2",
    "\u0661\u0665",
    "１５",
    "\u202e51\u202c",
    "15\u200b",
    "15\0",
    "\0",
    "10^{10^{10}}",
    "9999999!",
    "(x+1)^{500000}",
    "\\frac{1}{0}",
    "1/0",
    "\\frac" * 50,
    "\\sqrt{" * 50,
    "{" * 300,
    "}" * 300,
    "(" * 300,
    "\\left(" * 30,
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1_5",
    "0x0f",
    "15.0000000001",
    "14.9999999",
    "1 5",
    "15 16",
    "15 or 16",
    "not 15",
    "x=15=16",
    "\\text{15",
    "\\begin{matrix}15\\end{matrix}",
    "\\ud800",
    "\ud800",
    "%s%s%n",
    "../../etc/passwd",
    "<|endoftext|>",
    "<answer>",
    "</answer>",
    "<answer><answer>15</answer>",
    "\\boxed{15",
    "\\boxed{\\boxed{16}}",
    "\\boxed 15",
    "3*(12-7)",
    "3*(12-7)=15",
    "3*7-12",
    "3*(12-7)*1",
    "3**(12-7)",
    "3 12 7",
    "1234432121433412",
    "1234432121433421",
    "12344321214334120",
    "1234 4321 2143 3412",
    "0204032001400402",
    "",
    " ",
    "\n",
]
FRAMES = [
    "{}",
    "<answer>{}</answer>",
    "<answer>{}",
    "{}</answer>",
    "\\boxed{{{}}}",
    "<answer>\\boxed{{{}}}</answer>",
    "<reasoning>\n{}\n</reasoning>\n<answer>\n{}\n</answer>\n",
    "<answer>```\n{}\n```</answer>",
    "\\boxed{{{}",
]
ALPHABET = "0123456789+-*/()=., \n$%\\{}<>^_!x" + "\u00b2\u0661\u202e\0"
WORDS = ["<answer>", "</answer>", "\\boxed{", "}", "\\frac", "\\text{", "15", "3*(12-7)", SOLVED, "<|eot_id|>", "```"]


def subjects():
    """(task, problem, oracle): the oracle accepts every response that the grader accepts, and possibly more.

    The oracles of d1 also accept the known errors of its rules (docs/grading.md).
    """
    for grading in ("strict", "d1"):
        loose = grading == "d1"
        gsm8k = Gsm8k(grading=grading)
        yield gsm8k, gsm8k.problem("q", "15"), lambda text, loose=loose: contains_number(text, 15, loose)
        math = Math(grading=grading)
        yield math, math.problem("q", "15"), lambda text, loose=loose: contains_number(text, 15, loose, not loose)
        countdown = Countdown(grading=grading)
        yield countdown, countdown.problem(NUMBERS, TARGET), lambda text, loose=loose: reaches(text, loose)
        sudoku = Sudoku(grading=grading)
        yield sudoku, sudoku.problem(PUZZLE), blanks_agree if loose else lambda text: SOLVED in text
    arithmetic = Arithmetic()
    yield arithmetic, arithmetic.problem(7, "+", 8), lambda text: contains_number(text, 15)


def blanks_agree(text):
    """Whether some 16 characters, without whitespace, equal the solution in the blank cells; clues are ignored."""
    text = "".join(text.split()) + "0" * 16
    blanks = [cell for cell in range(16) if PUZZLE[cell] == "0"]
    return any(all(text[start + cell] == SOLVED[cell] for cell in blanks) for start in range(len(text) - 15))


def contains_number(text, number, loose=False, computed=False):
    """Whether a text contains the number, as one number or as a fraction of two.

    `computed` also accepts a number that some operations on two or three of the text's numbers give."""
    forms = [text, re.sub("[_,{}]", "", text)]
    if loose:  # float() also reads digits of other scripts, and d1's normal form removes spaces
        ascii_digits = "".join(str(int(c)) if c.isdecimal() else c for c in text)
        forms += [ascii_digits, re.sub(r"\s|\\!", "", text)]
    for form in forms:
        runs = [run for run in re.findall(r"[0-9]+(?:\.[0-9]+)?", form) if len(run) < 40]
        values = [Fraction(run) for run in runs]
        if any(abs(value - number) < Fraction(1, 10**6) for value in values):
            return True
        if any(b and a / b == number for a, b in itertools.pairwise(values)):
            return True
        if computed and any(sign in form for sign in ("!", "^", "sqrt")):
            return True
        if computed:
            for a, b, c in itertools.permutations(values[:6], 3):
                results = [f(a, b) for f in OPERATIONS]
                if number in results or any(f(result, c) == number for result in results for f in OPERATIONS):
                    return True
    return False


OPERATIONS = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / b if b else a,
    lambda a, b: b - a,
    lambda a, b: b / a if a else b,
]


def reaches(text, loose):
    """Whether some part of the text is arithmetic with exactly the three numbers and the target's value.

    Independent of the task's code: Python's parser, exact values.  `loose` does not check the value.
    """
    for latex, sign in (
        ("\\times", "*"),
        ("\\cdot", "*"),
        ("\\div", "/"),
        ("\u00d7", "*"),
        ("\u00f7", "/"),
        ("\u2212", "-"),
    ):
        text = text.replace(latex, sign)
    for run in re.findall(r"[-0-9+*/(). \t\r\n]+", text):
        try:
            tree = ast.parse(run.strip().removesuffix(".")[:400], mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        counts = Counter(re.findall("[0-9]+", run))
        if counts == Counter(map(str, NUMBERS)) and (loose or value_of(tree.body) == TARGET):
            return True
    return False


def value_of(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    if isinstance(node, ast.BinOp):
        left, right = value_of(node.left), value_of(node.right)
        if left is None or right is None:
            return None
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div) and right:
            return left / right
    return None


def framed(frame, core):
    return frame.replace("{{", "\1").replace("}}", "\2").replace("{}", core).replace("\1", "{").replace("\2", "}")


def handwritten(size=1_000_000):
    for core, frame in itertools.product(CORES, FRAMES):
        yield framed(frame, core)
    for piece in ("<answer>", "\\boxed{", "1", "(", "9**", "\\frac{", "```", "\n", "a ", "=1", "15 ", "\u202e"):
        yield piece * (size // len(piece))
        yield "<answer>" + piece * (size // len(piece)) + "</answer>"


def fuzzed(count, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < 0.5:
            core = "".join(rng.choice(ALPHABET) for _ in range(rng.randint(0, 30)))
        else:
            core = "".join(rng.choice(WORDS + CORES[:20] + list(ALPHABET)) for _ in range(rng.randint(0, 12)))
        text = framed(rng.choice(FRAMES), core)
        if rng.random() < 0.2:  # one character of a correct response is changed
            text = rng.choice(["<answer>15</answer>", "<answer>3*(12-7)</answer>", f"<answer>{SOLVED}</answer>"])
            index = rng.randrange(len(text))
            text = text[:index] + rng.choice(ALPHABET) + text[index + rng.randint(0, 1) :]
        yield text


def check_responses(responses, math_every=1):
    """Grade all responses; strict MATH only every `math_every`-th, because each failure there starts a new process."""
    count = 0
    for number, text in enumerate(responses):
        for task, problem, oracle in SUBJECTS:
            if isinstance(task, Math) and task.grading == "strict" and number % math_every:
                continue
            started = time.monotonic()
            grade = task.grade(problem, text)
            spans = task.protected_spans(problem, text)
            seconds = time.monotonic() - started
            context = (task.kind, getattr(task, "grading", "strict"), text[:200])
            assert seconds < MAX_SECONDS, (seconds, context)
            assert all(0 <= start < end <= len(text) for start, end in spans), context
            assert not grade.correct or oracle(text), context
            count += 1
    return count


SUBJECTS = list(subjects())
MAX_SECONDS = 20  # the deadline and a new process, on a busy machine


@pytest.fixture
def short_deadline(monkeypatch):
    """A short deadline, so that many hostile answers can be tested."""
    monkeypatch.setattr(equivalence, "CPU_SECONDS", 0.5)


def assert_no_side_effects(folder, initial_memory):
    assert not list(folder.iterdir())  # no text was executed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - initial_memory < 500_000  # kilobytes


def test_handwritten_hostile_responses(tmp_path, monkeypatch, short_deadline):
    monkeypatch.chdir(tmp_path)
    initial_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_responses(handwritten(50_000), math_every=25)
    assert_no_side_effects(tmp_path, initial_memory)


def test_fuzzed_responses(short_deadline):
    assert check_responses(fuzzed(2_000), math_every=20) == 2_000 * 8 + 100


@pytest.mark.slow
def test_twenty_thousand_fuzzed_responses_and_megabytes(tmp_path, monkeypatch, short_deadline):
    monkeypatch.chdir(tmp_path)
    initial_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_responses(itertools.chain(handwritten(), fuzzed(20_000, seed=1)))
    assert_no_side_effects(tmp_path, initial_memory)


def test_oracles_reject_wrong_responses_and_graders_accept_correct_ones():
    assert not contains_number("<answer>16</answer>", 15) and contains_number("<answer>15</answer>", 15)
    assert not reaches("<answer>3*7-12</answer>", False) and reaches("<answer>3*(12-7)</answer>", False)
    assert not contains_number("<answer>3*4*7</answer>", 15, computed=True) and contains_number(
        "3*(12-7)", 15, computed=True
    )
    assert not blanks_agree("0204032001400402") and blanks_agree("x" + SOLVED)
    assert sum(task.grade(problem, text).correct for text in handwritten(100) for task, problem, _ in SUBJECTS[2:4]) > 3
