"""Hand-made hostile responses and thousands of fuzzed ones, for every task and both rules.

None may crash a grader, hang it, or be called right when an independent oracle calls it wrong.
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
    """(task, problem, oracle): the oracle may call a response right that the grader refuses, never the other way.

    d1's oracles allow what is known to be wrong with its rules (docs/grading.md), and no more.
    """
    for grading in ("strict", "d1"):
        loose = grading == "d1"
        gsm8k = Gsm8k(grading=grading)
        yield gsm8k, gsm8k.problem("q", "15"), lambda text, loose=loose: holds_number(text, 15, loose)
        math = Math(grading=grading)
        yield math, math.problem("q", "15"), lambda text, loose=loose: holds_number(text, 15, loose, not loose)
        countdown = Countdown(grading=grading)
        yield countdown, countdown.problem(NUMBERS, TARGET), lambda text, loose=loose: reaches(text, loose)
        sudoku = Sudoku(grading=grading)
        yield sudoku, sudoku.problem(PUZZLE), blanks_agree if loose else lambda text: SOLVED in text
    arithmetic = Arithmetic()
    yield arithmetic, arithmetic.problem(7, "+", 8), lambda text: holds_number(text, 15)


def blanks_agree(text):
    """Whether some 16 characters, blanks aside, are right in the blank cells: clues are not looked at."""
    text = "".join(text.split()) + "0" * 16
    wanted = [cell for cell in range(16) if PUZZLE[cell] == "0"]
    return any(all(text[at + cell] == SOLVED[cell] for cell in wanted) for at in range(len(text) - 15))


def holds_number(text, number, loose=False, worked=False):
    """Whether a text writes the number: plainly, as a fraction of two, or (`worked`) as what two or three of its
    numbers give by some operations."""
    forms = [text, re.sub("[_,{}]", "", text)]
    if loose:  # float() also knows the digits of other scripts, and d1's normal form takes blanks out
        known = "".join(str(int(c)) if c.isdecimal() else c for c in text)
        forms += [known, re.sub(r"\s|\\!", "", text)]
    for form in forms:
        runs = [run for run in re.findall(r"[0-9]+(?:\.[0-9]+)?", form) if len(run) < 40]
        small = [Fraction(run) for run in runs]
        if any(abs(value - number) < Fraction(1, 10**6) for value in small):
            return True
        if any(b and a / b == number for a, b in itertools.pairwise(small)):
            return True
        if worked and any(marks in form for marks in ("!", "^", "sqrt")):
            return True
        if worked:
            for some in itertools.permutations(small[:6], 3):
                pairs = [f(some[0], some[1]) for f in OPERATIONS]
                if number in pairs or any(f(pair, some[2]) == number for pair in pairs for f in OPERATIONS):
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
    """Whether some stretch of the text is arithmetic of exactly the three numbers with the target's value.

    Written anew: Python's own parser, exact values; `loose` also takes d1's signs, powers and floor divisions.
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
            tree = ast.parse(run.strip()[:400], mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        used = Counter(re.findall("[0-9]+", run))
        if used == Counter(map(str, NUMBERS)) and (loose or value_of(tree.body) == TARGET):
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


def handmade(size=1_000_000):
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
        if rng.random() < 0.2:  # one character of a good response changed
            text = rng.choice(["<answer>15</answer>", "<answer>3*(12-7)</answer>", f"<answer>{SOLVED}</answer>"])
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(ALPHABET) + text[at + rng.randint(0, 1) :]
        yield text


def check(responses, math_every=1):
    """Grades all responses; those that may need math-verify, whose every failure costs a new process, only so often."""
    count = 0
    for number, text in enumerate(responses):
        for task, problem, oracle in SUBJECTS:
            if isinstance(task, Math) and task.grading == "strict" and number % math_every:
                continue
            before = time.monotonic()
            grade = task.grade(problem, text)
            spans = task.protected(problem, text)
            seconds = time.monotonic() - before
            where = (task.kind, getattr(task, "grading", "strict"), text[:200])
            assert seconds < SLOWEST, (seconds, where)
            assert all(0 <= start < end <= len(text) for start, end in spans), where
            assert not grade.correct or oracle(text), where
            count += 1
    return count


SUBJECTS = list(subjects())
SLOWEST = 20  # seconds: the deadline and a new process on a busy machine


@pytest.fixture
def impatient(monkeypatch):
    """A short deadline, so that hostile answers can be many."""
    monkeypatch.setattr(equivalence, "SECONDS", 0.5)


def nothing_happened(tmp_path, before):
    assert not list(tmp_path.iterdir())  # nothing was run
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


def test_handmade_hostile_responses(tmp_path, monkeypatch, impatient):
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(handmade(50_000), math_every=25)
    nothing_happened(tmp_path, before)


def test_fuzzed_responses(impatient):
    assert check(fuzzed(2_000), math_every=20) == 2_000 * 8 + 100


@pytest.mark.slow
def test_twenty_thousand_fuzzed_responses_and_megabytes(tmp_path, monkeypatch, impatient):
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(itertools.chain(handmade(), fuzzed(20_000, seed=1)))
    nothing_happened(tmp_path, before)


def test_the_oracles_can_say_no_and_graders_yes():
    assert not holds_number("<answer>16</answer>", 15) and holds_number("<answer>15</answer>", 15)
    assert not reaches("<answer>3*7-12</answer>", False) and reaches("<answer>3*(12-7)</answer>", False)
    assert not holds_number("<answer>3*4*7</answer>", 15, worked=True) and holds_number("3*(12-7)", 15, worked=True)
    assert not blanks_agree("0204032001400402") and blanks_agree("x" + SOLVED)
    assert sum(task.grade(problem, text).correct for text in handmade(100) for task, problem, _ in SUBJECTS[2:4]) > 3
