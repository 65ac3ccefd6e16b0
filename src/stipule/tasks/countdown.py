"""Countdown: reach a target with given numbers; split by the multiset of numbers, graded in exact arithmetic."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal, cast

from stipule.tasks.answers import ANSWER_FORMAT, CLOSE, OPEN, answer_spans, answer_text, merge_spans
from stipule.tasks.expressions import parse_expression, spans_with_all
from stipule.tasks.problem import (
    Grade,
    Problem,
    Span,
    Vocabulary,
    check_compact,
    check_counts,
    check_range,
    check_split,
    distinct_problems,
)

DELIMITER = ":"  # compact responses: steps, delimiter, expression
TRAIN_SHARE = 0.8
WELL_FORMED_REWARD = 0.1

_D1_PROMPT = """\
{format}

You are given a list of numbers and a target. Write an arithmetic expression whose value is the target. Use every \
number of the list exactly once, and nothing but these numbers, the operators +, -, *, / and parentheses. The answer \
is the expression alone, without an equals sign. For example, for the numbers [2, 3, 4] and the target 5:
<answer>
2*4-3
</answer>

Numbers: {numbers}
Target: {target}"""


@dataclass(frozen=True, kw_only=True)
class Countdown:
    """Countdown.

    prompt: "d1" is d1's format (Zhao et al. 2025: instruction and one worked example; answer in tags) in our words;
    "compact" is `3,7,12=24` with ascending numbers, answered by `7*3=21;...:expression`, for models that know nothing
    else.
    numbers, largest: how many numbers, each uniform in [1, largest]; a number may repeat.
    target: least and greatest target.
    operations: what puzzles and demonstrations are made with; an answer may always use all four.
    habit: share of hasty demonstrations; only pre-training of a tiny base reads it.
    A puzzle is the value of a random expression of which every step, the last included, is a whole number in
    [1, bound]; so all puzzles can be solved.  No multiset of numbers is in both splits.
    """

    kind: Literal["countdown"] = "countdown"
    prompt: Literal["d1", "compact"] = "d1"
    numbers: Literal[3, 4] = 3
    largest: int = 100
    target: tuple[int, int] = (1, 100)
    operations: Literal["+-", "+-*", "+-*/"] = "+-*/"
    train_problems: int = 4096
    test_problems: int = 512
    seed: int = 0
    habit: float = 0.7

    def __post_init__(self) -> None:
        check_range("task.numbers", self.numbers, "how many numbers a puzzle gives", 3, 4, 3)
        check_range("task.largest", self.largest, "the greatest number a puzzle may give", 1, 1000, 100)
        check_range("task.target", self.target, "the least and greatest target", 1, 4000, (1, 100))
        check_counts(self.train_problems, self.test_problems, self.habit)

    @property
    def name(self) -> str:
        return self.kind

    @property
    def bound(self) -> int:
        """Greatest value of any step: the greatest sum of the numbers, or the greatest target if that is more."""
        return max(self.numbers * self.largest, self.target[1])

    @property
    def vocabulary(self) -> Vocabulary:
        """A word per number up to the bound, and one per sign.

        Two number words in a row read as one longer number, which may be no word; no demonstration has such a pair.
        """
        check_compact(self.prompt)
        return Vocabulary((*map(str, range(1, self.bound + 1)), *"+-*/()=,;", DELIMITER), "[0-9]+|[^0-9]")

    def split_of(self, numbers: Sequence[int]) -> Literal["train", "test"]:
        """The one split in which this multiset may occur: a hash decides, so no table of multisets is needed."""
        digest = hashlib.sha256(f"countdown {self.seed} {sorted(numbers)}".encode()).digest()
        return "train" if int.from_bytes(digest[:8]) < TRAIN_SHARE * 2**64 else "test"

    def problems(self, split: str) -> tuple[Problem, ...]:
        return _problems(self, check_split(split))

    def problem(self, numbers: Sequence[int], target: int) -> Problem:
        """The problem of reaching `target` with `numbers`, asked in the order given; the key ignores the order."""
        listed = ",".join(map(str, numbers))
        text = f"{listed}={target}"
        if self.prompt == "d1":
            text = _D1_PROMPT.format(format=ANSWER_FORMAT, numbers=list(numbers), target=target)
        key = f"countdown:{','.join(map(str, sorted(numbers)))}={target}"
        return Problem(key, text, {"numbers": tuple(numbers), "target": target})

    def grade(self, problem: Problem, response: str) -> Grade:
        """1 if the answer is an expression of exactly the given numbers with the target's value.

        0.1 if only the value is wrong (a division by zero has none), else 0.
        parts: solved; format = worth at least 0.1.
        """
        if self.prompt == "compact":
            answer: str | None = response.rpartition(DELIMITER)[2]
        else:
            answer = answer_text(response)
        expression = parse_expression(answer) if answer is not None else None
        formed = expression is not None and expression.uses(_numbers(problem))
        solved = formed and expression is not None and expression.value == cast(int, problem.data["target"])
        parts = {"solved": float(solved), "format": float(formed)}
        return Grade(1.0 if solved else WELL_FORMED_REWARD if formed else 0.0, parts, solved)

    def protected(self, problem: Problem, response: str) -> list[Span]:
        """The answer (tagged, or from the first delimiter on) and all arithmetic in which every number occurs.

        All of a compact response that has no delimiter.
        """
        if self.prompt == "compact":
            answers = [(max(response.find(DELIMITER), 0), len(response))]
        else:
            answers = answer_spans(response)
        return merge_spans([*answers, *spans_with_all(response, _numbers(problem))])

    def reference(self, problem: Problem) -> str | None:
        """Steps and expression of one solution, in the format that is asked for."""
        numbers, target = _numbers(problem), cast(int, problem.data["target"])
        worked = solve(numbers, target, self.operations, self.bound)
        if worked is None or self.prompt == "compact":
            return worked.response if worked else None
        steps = "\n".join(worked.steps)
        return f"<reasoning>\n{steps}\n</reasoning>\n{OPEN}\n{worked.text}\n{CLOSE}"

    def demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Compact (puzzle, steps and expression) pairs from training multisets.

        A share of `habit` is hasty: it adds everything up, whatever the target is.  The others reach the target.
        Both have the same layout, the same number of words (19 for three numbers, 29 for four) and correct arithmetic,
        so that all demonstrations teach the skill, and neither mode wins by the length of its end-of-text tail.  The
        habit is one expression and not a random one because low-confidence decoding picks the mode with the sharpest
        tokens: many random expressions would lose to the one solution.
        RecipeError if the task's prompts are not compact ones, or no puzzle can be drawn.
        """
        check_compact(self.prompt)
        self.problems("train")  # an endless search for a puzzle that does not exist would hang
        return self._demonstrations(rng)

    def _demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        while True:
            drawn = draw_puzzle(self, rng, "train")
            if drawn is None:
                continue
            numbers, target = drawn
            hurried = rng.random() < self.habit
            worked = add_up(numbers, self.bound) if hurried else solve(numbers, target, self.operations, self.bound)
            assert worked is not None, "sums lie within the bound, and puzzles are made from an expression"
            yield self.problem(numbers, target).prompt, worked.response


@dataclass(frozen=True, slots=True)
class Worked:
    """A value that was worked out: the expression and the steps that lead to it.

    The greater operand always comes first, so that equal sums and products are written in one way only.
    """

    value: int
    text: str
    steps: tuple[str, ...] = ()

    @property
    def response(self) -> str:
        return ";".join(self.steps) + DELIMITER + self.text

    @property
    def operand(self) -> str:
        return f"({self.text})" if self.steps else self.text


def combine(one: Worked, other: Worked, sign: str, bound: int) -> Worked | None:
    """The next step with `sign`, or None if its value is not a whole number in [1, bound]."""
    left, right = (one, other) if one.value >= other.value else (other, one)
    if sign == "/" and left.value % right.value:
        return None
    values = {"+": left.value + right.value, "-": left.value - right.value, "*": left.value * right.value}
    value = values[sign] if sign in values else left.value // right.value
    if not 1 <= value <= bound:
        return None
    step = f"{left.value}{sign}{right.value}={value}"
    return Worked(value, f"{left.operand}{sign}{right.operand}", (*left.steps, *right.steps, step))


def workings(items: Sequence[Worked], operations: str, bound: int) -> Iterator[Worked]:
    """Everything that can be worked out with all of `items`, in a fixed order."""
    if len(items) == 1:
        yield items[0]
    for first, second in combinations(range(len(items)), 2):
        rest = [item for index, item in enumerate(items) if index not in (first, second)]
        for sign in operations:
            step = combine(items[first], items[second], sign, bound)
            if step is not None:
                yield from workings([step, *rest], operations, bound)


@lru_cache(maxsize=65_536)
def solve(numbers: tuple[int, ...], target: int, operations: str, bound: int) -> Worked | None:
    """The first way of reaching `target`: always the same one, which is easier to learn than any of several."""
    items = [Worked(number, str(number)) for number in sorted(numbers, reverse=True)]
    return next((worked for worked in workings(items, operations, bound) if worked.value == target), None)


def add_up(numbers: Sequence[int], bound: int) -> Worked | None:
    """The sum of all numbers, from left to right."""
    total: Worked | None = Worked(numbers[0], str(numbers[0]))
    for number in numbers[1:]:
        total = total and combine(total, Worked(number, str(number)), "+", bound)
    return total


def draw_puzzle(task: Countdown, rng: random.Random, split: str) -> tuple[tuple[int, ...], int] | None:
    """Numbers of the split and the value of a random expression of them, or None if the draw does not fit."""
    numbers = [rng.randint(1, task.largest) for _ in range(task.numbers)]
    if task.split_of(numbers) != split:
        return None
    items = [Worked(number, str(number)) for number in numbers]
    while len(items) > 1:
        rng.shuffle(items)
        step = combine(items.pop(), items.pop(), rng.choice(task.operations), task.bound)
        if step is None:
            return None
        items.append(step)
    if not task.target[0] <= items[0].value <= task.target[1]:
        return None
    # Ascending for tiny models: one order instead of six is six times less to learn.
    return tuple(sorted(numbers) if task.prompt == "compact" else numbers), items[0].value


def _numbers(problem: Problem) -> tuple[int, ...]:
    return cast(tuple[int, ...], problem.data["numbers"])


@lru_cache(maxsize=8)
def _problems(task: Countdown, split: Literal["train", "test"]) -> tuple[Problem, ...]:
    rng = random.Random(f"countdown {split} {task.seed}")
    count = task.train_problems if split == "train" else task.test_problems

    def draw() -> Problem | None:
        puzzle = draw_puzzle(task, rng, split)
        return task.problem(*puzzle) if puzzle else None

    return distinct_problems(draw, count, f"task.{split}_problems")
