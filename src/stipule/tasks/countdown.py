"""Countdown: reach a target with given numbers; split by the multiset of numbers, graded in exact arithmetic."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

from stipule.errors import RecipeError
from stipule.tasks.answers import answer_spans, answer_text, merge_spans
from stipule.tasks.boxed import boxed_spans, last_boxed
from stipule.tasks.countdown_workings import DELIMITER, Worked, add_up, combine, solve
from stipule.tasks.d1_answers import countdown_right
from stipule.tasks.d1_rewards import COUNTDOWN_WEIGHTS, countdown_parts
from stipule.tasks.dataset import read_problems, refuse_overlap
from stipule.tasks.dataset_io import get_column
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
from stipule.tasks.prompts import format_prompt, format_response, prefill
from stipule.tasks.weights import check_grading, chosen_weights, total

TRAIN_SHARE = 0.8
STRICT_WEIGHTS = {"solved": 0.9, "format": 0.1}

# What a box may write for the four signs.
_SIGNS = (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("×", "*"), ("÷", "/"), ("−", "-"))


@dataclass(frozen=True, kw_only=True)
class Countdown:
    """Countdown.

    prompt: "d1" is d1's training format (Zhao et al. 2025: instruction and one worked example; answer in tags),
    "d1_eval" that of its evaluation, which asks for a \\boxed{} and starts the response with <reasoning>, "stipule"
    ours, all in our words (tasks/prompts); "compact" is `3,7,12=24` with ascending numbers, answered by
    `7*3=21;...:expression`, for models that know nothing else.
    grading: "strict" is exact; "d1" is the published evaluation's rule, and its training reward (docs/grading.md).
    train, test: files of JSON lines or CSV with input ("3,7,12") and output, or nums and target, or a name on the hub
    (Jiayi-Pan/Countdown-Tasks-3to4); of these the first train_problems or test_problems of `numbers` numbers. None
    draws puzzles, of other numbers than any in the other split.
    numbers, largest: how many numbers, each uniform in [1, largest]; a number may repeat.
    target: least and greatest target.
    operations: what puzzles and demonstrations are made with; an answer may always use all four.
    habit: share of hasty demonstrations; only pre-training of a tiny base reads it.
    weights: of the parts; strict: solved 0.9, format 0.1; d1: solved 0.9, attempt 0.1.
    A puzzle is the value of a random expression of which every step, the last included, is a whole number in
    [1, bound]; so all puzzles can be solved.  No multiset of numbers is in both splits.
    """

    kind: Literal["countdown"] = "countdown"
    prompt: Literal["d1", "d1_eval", "stipule", "compact"] = "d1"
    grading: Literal["strict", "d1"] = "strict"
    train: str | None = None
    test: str | None = None
    numbers: Literal[3, 4] = 3
    largest: int = 100
    target: tuple[int, int] = (1, 100)
    operations: Literal["+-", "+-*", "+-*/"] = "+-*/"
    train_problems: int = 4096
    test_problems: int = 512
    seed: int = 0
    wrong_demo_fraction: float = 0.7
    weights: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_grading(self.grading, self.prompt)
        chosen_weights(self.weights, self._defaults)
        check_range("task.numbers", self.numbers, "how many numbers a puzzle gives", 3, 4, 3)
        check_range("task.largest", self.largest, "the greatest number a puzzle may give", 1, 1000, 100)
        check_range("task.target", self.target, "the least and greatest target", 1, 4000, (1, 100))
        check_counts(self.train_problems, self.test_problems, self.wrong_demo_fraction)

    @property
    def name(self) -> str:
        return self.kind

    @property
    def _defaults(self) -> Mapping[str, float]:
        return COUNTDOWN_WEIGHTS if self.grading == "d1" else STRICT_WEIGHTS

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
        if self.prompt != "compact":
            text = format_prompt(self.kind, self.prompt, numbers=list(numbers), target=target)
        key = f"countdown:{','.join(map(str, sorted(numbers)))}={target}"
        data = {"numbers": tuple(numbers), "target": target}
        return Problem(key, text, data, prefill=prefill(self.prompt))

    def read(self, where: str, row: Any) -> Problem | None:
        """The problem of a row, None if it has another count of numbers; RecipeError if it is none."""
        numbers, target = get_column(where, row, "input", "nums", "numbers"), get_column(where, row, "output", "target")
        try:
            numbers = numbers.split(",") if isinstance(numbers, str) else numbers
            numbers, target = [int(number) for number in numbers], int(target)
        except (TypeError, ValueError) as cause:
            raise RecipeError(
                f"{where} has the numbers {numbers!r} and the target {target!r}; they must be whole numbers such as "
                '"30,100,93" and "23"; correct it'
            ) from cause
        return self.problem(numbers, target) if len(numbers) == self.numbers else None

    def grade(self, problem: Problem, response: str) -> Grade:
        """strict: solved = an expression of exactly the given numbers with the target's value; format = of exactly
        the given numbers, whatever its value (a division by zero has none).

        So 1 if solved, 0.1 if only the value is wrong, else 0, with the default weights.
        """
        numbers, target = _numbers(problem), cast(int, problem.data["target"])
        if self.grading == "d1":
            solved = countdown_right(response, list(numbers), target)
            parts = {"correct": float(solved), **countdown_parts(response, numbers, target)}
        else:
            answer = self.answer(response)
            expression = parse_expression(answer) if answer is not None else None
            formed = expression is not None and expression.uses(numbers)
            solved = formed and expression is not None and expression.value == target
            parts = {"solved": float(solved), "format": float(formed)}
        return Grade(total(parts, chosen_weights(self.weights, self._defaults)), parts, solved)

    def answer(self, response: str) -> str | None:
        """What the strict rules take for the answer: after the delimiter, or tagged; a box may write LaTeX signs."""
        if self.prompt == "compact":
            return response.rpartition(DELIMITER)[2]
        tagged = answer_text(response)
        box = last_boxed(response if tagged is None else tagged)
        for latex, sign in _SIGNS if box is not None else ():
            box = cast(str, box).replace(latex, sign)
        return tagged if box is None else box

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """The answer (tagged, boxed, or from the first delimiter on) and all arithmetic in which every number occurs.

        All of a compact response that has no delimiter.
        """
        if self.prompt == "compact":
            answers = [(max(response.find(DELIMITER), 0), len(response))]
        else:
            answers = [*answer_spans(response), *boxed_spans(response)]
        return merge_spans([*answers, *spans_with_all(response, _numbers(problem))])

    def reference(self, problem: Problem) -> str | None:
        """Steps and expression of one solution, in the format that is asked for."""
        numbers, target = _numbers(problem), cast(int, problem.data["target"])
        worked = solve(numbers, target, self.operations, self.bound)
        if worked is None or self.prompt == "compact":
            return worked.response if worked else None
        answer = f"\\boxed{{{worked.text}}}" if self.prompt == "d1_eval" else worked.text
        return format_response(self.prompt, "\n".join(worked.steps), answer)

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
            hurried = rng.random() < self.wrong_demo_fraction
            worked = add_up(numbers, self.bound) if hurried else solve(numbers, target, self.operations, self.bound)
            assert worked is not None, "sums lie within the bound, and puzzles are made from an expression"
            yield self.problem(numbers, target).prompt, worked.response


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
    count = task.train_problems if split == "train" else task.test_problems
    source, other = (task.train, task.test) if split == "train" else (task.test, task.train)
    # An evaluation on a file of one's own needs no training data.
    elsewhere = read_problems(other, task.read) if other and (split == "train" or not source) else ()
    if source:
        read = read_problems(source, task.read, count)
        refuse_overlap(read, elsewhere, f"task.train {task.train!r} and task.test {task.test!r}")
        return read
    rng = random.Random(f"countdown {split} {task.seed}")
    taken = {tuple(sorted(_numbers(problem))) for problem in elsewhere}

    def draw() -> Problem | None:
        puzzle = draw_puzzle(task, rng, split)
        return task.problem(*puzzle) if puzzle and tuple(sorted(puzzle[0])) not in taken else None

    return distinct_problems(draw, count, f"task.{split}_problems")
