"""Countdown: reach a target with given numbers.  Splits differ by multiset of numbers; grading is exact."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

from stipule.errors import RecipeError
from stipule.tasks.answer_markup import strip_markup
from stipule.tasks.answers import answer_spans, answer_text, merge_spans
from stipule.tasks.boxed import boxed_spans, last_boxed
from stipule.tasks.countdown_workings import DELIMITER, Derivation, add_up, apply_operator, solve
from stipule.tasks.d1_answers import is_countdown_correct
from stipule.tasks.d1_rewards import COUNTDOWN_WEIGHTS, countdown_parts
from stipule.tasks.dataset import check_no_overlap, read_problems
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
from stipule.tasks.weights import check_grading, merge_weights, weighted_sum

TRAIN_FRACTION = 0.8
STRICT_WEIGHTS = {"solved": 0.9, "format": 0.1}

# Other notations of the four signs in a \boxed{}.
_SIGNS = (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("×", "*"), ("÷", "/"), ("−", "-"))


@dataclass(frozen=True, kw_only=True)
class Countdown:
    """Countdown: reach a target with some numbers and + - * /, each number used once.

    prompt: "d1": the format of d1's training (Zhao et al. 2025: instruction and one worked example; answer in tags).
    "d1_eval": that of d1's evaluation, with a \\boxed{} and <reasoning> as the start of the response. "stipule": our
    own. The texts of all three are ours (tasks/prompt_templates). "compact": `3,7,12=24` with ascending numbers and
    the response `7*3=21;...:expression`, for tiny models.
    grading: "strict" is exact; "d1" is the rule of d1's evaluation and its training reward (docs/grading.md).
    train, test: files of JSON lines or CSV with input ("3,7,12") and output, or nums and target, or a name on the hub
    (Jiayi-Pan/Countdown-Tasks-3to4). The first train_problems or test_problems with `numbers` numbers are used. None:
    puzzles are generated, without the multisets of the other split.
    numbers, largest: the count of numbers, each uniform in [1, largest]; a number may repeat.
    target: least and greatest target.
    operations: the signs in generated puzzles and demonstrations; an answer may always use all four.
    wrong_demo_fraction: fraction of wrong demonstrations; used only to pre-train a tiny base.
    weights: of the reward parts; strict: solved 0.9, format 0.1; d1: solved 0.9, attempt 0.1.
    A generated target is the value of a random expression in which every step is a whole number in [1, bound]; so
    every puzzle has a solution.  No multiset of numbers is in both splits.
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
        merge_weights(self.weights, self._defaults)
        check_range("task.numbers", self.numbers, "the count of numbers in a puzzle", 3, 4, 3)
        check_range("task.largest", self.largest, "the greatest number of a puzzle", 1, 1000, 100)
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
        """One word per number up to the bound, and one per sign.

        Two adjacent numbers would be read as one longer number; demonstrations never have two adjacent numbers.
        """
        check_compact(self.prompt)
        return Vocabulary((*map(str, range(1, self.bound + 1)), *"+-*/()=,;", DELIMITER), "[0-9]+|[^0-9]")

    def split_of(self, numbers: Sequence[int]) -> Literal["train", "test"]:
        """The split of this multiset, from a hash, so that no table of multisets is needed."""
        digest = hashlib.sha256(f"countdown {self.seed} {sorted(numbers)}".encode()).digest()
        return "train" if int.from_bytes(digest[:8]) < TRAIN_FRACTION * 2**64 else "test"

    def problems(self, split: str) -> tuple[Problem, ...]:
        return _problems(self, check_split(split))

    def problem(self, numbers: Sequence[int], target: int) -> Problem:
        """The problem with these numbers, in this order, and this target; the key does not depend on the order."""
        text = f"{','.join(map(str, numbers))}={target}"
        if self.prompt != "compact":
            text = format_prompt(self.kind, self.prompt, numbers=list(numbers), target=target)
        key = f"countdown:{','.join(map(str, sorted(numbers)))}={target}"
        data = {"numbers": tuple(numbers), "target": target}
        return Problem(key, text, data, prefill=prefill(self.prompt))

    def read(self, location: str, row: Any) -> Problem | None:
        """The problem of a row; None if it has another count of numbers; RecipeError if it cannot be read."""
        numbers = get_column(location, row, "input", "nums", "numbers")
        target = get_column(location, row, "output", "target")
        try:
            numbers = numbers.split(",") if isinstance(numbers, str) else numbers
            numbers, target = [int(number) for number in numbers], int(target)
        except (TypeError, ValueError) as cause:
            raise RecipeError(
                f"{location} has the numbers {numbers!r} and the target {target!r}; they must be whole numbers such as "
                '"30,100,93" and "23"; correct it'
            ) from cause
        return self.problem(numbers, target) if len(numbers) == self.numbers else None

    def grade(self, problem: Problem, response: str) -> Grade:
        """strict: format = an expression with exactly the given numbers; solved = its value is also the target.

        With the default weights the reward is 1 if solved, 0.1 if only the value is wrong or undefined, else 0.
        """
        numbers, target = _numbers(problem), cast(int, problem.data["target"])
        if self.grading == "d1":
            solved = is_countdown_correct(response, list(numbers), target)
            parts = {"correct": float(solved), **countdown_parts(response, numbers, target)}
        else:
            answer = self.answer(response)
            expression = parse_expression(answer) if answer is not None else None
            uses_numbers = expression is not None and expression.uses(numbers)
            solved = uses_numbers and expression is not None and expression.value == target
            parts = {"solved": float(solved), "format": float(uses_numbers)}
        return Grade(weighted_sum(parts, merge_weights(self.weights, self._defaults)), parts, solved)

    def answer(self, response: str) -> str | None:
        """The answer under the strict rules: after the delimiter if compact, else tagged or in a \\boxed{}."""
        if self.prompt == "compact":
            return response.rpartition(DELIMITER)[2]
        tagged = answer_text(response)
        boxed = last_boxed(response if tagged is None else tagged)
        for notation, sign in _SIGNS if boxed is not None else ():
            boxed = cast(str, boxed).replace(notation, sign)
        answer = tagged if boxed is None else boxed
        return None if answer is None else strip_markup(answer)

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """The answer (tagged, boxed, or from the first delimiter on) and all arithmetic with every number.

        A compact response without a delimiter is protected as a whole.
        """
        if self.prompt == "compact":
            answers = [(max(response.find(DELIMITER), 0), len(response))]
        else:
            answers = [*answer_spans(response), *boxed_spans(response)]
        return merge_spans([*answers, *spans_with_all(response, _numbers(problem))])

    def reference(self, problem: Problem) -> str | None:
        """Steps and expression of one solution, in the prompt's format."""
        numbers, target = _numbers(problem), cast(int, problem.data["target"])
        solution = solve(numbers, target, self.operations, self.bound)
        if solution is None or self.prompt == "compact":
            return solution.response if solution else None
        answer = f"\\boxed{{{solution.text}}}" if self.prompt == "d1_eval" else solution.text
        return format_response(self.prompt, "\n".join(solution.steps), answer)

    def demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Compact (puzzle, steps and expression) pairs from training multisets.

        A fraction `wrong_demo_fraction` is wrong: it is the sum of all numbers.  The others reach the target.
        Both kinds have the same layout, the same number of words (19 for three numbers, 29 for four) and correct
        arithmetic, so that all of them train arithmetic and none is preferred for its length.  The wrong kind is one
        fixed expression because low-confidence remasking prefers tokens of high probability: random expressions would
        have a lower probability than the solution.
        RecipeError if the task's prompts are not compact, or if no puzzle exists.
        """
        check_compact(self.prompt)
        self.problems("train")  # raises if no puzzle exists; the loop below would be endless
        return self._demonstrations(rng)

    def _demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        while True:
            puzzle = sample_puzzle(self, rng, "train")
            if puzzle is None:
                continue
            numbers, target = puzzle
            is_wrong = rng.random() < self.wrong_demo_fraction
            demo = add_up(numbers, self.bound) if is_wrong else solve(numbers, target, self.operations, self.bound)
            assert demo is not None, "the sum is within the bound, and every puzzle has a solution"
            yield self.problem(numbers, target).prompt, demo.response


def sample_puzzle(task: Countdown, rng: random.Random, split: str) -> tuple[tuple[int, ...], int] | None:
    """Random numbers of the split and the value of a random expression, or None if the sample is out of range."""
    numbers = [rng.randint(1, task.largest) for _ in range(task.numbers)]
    if task.split_of(numbers) != split:
        return None
    items = [Derivation(number, str(number)) for number in numbers]
    while len(items) > 1:
        rng.shuffle(items)
        step = apply_operator(items.pop(), items.pop(), rng.choice(task.operations), task.bound)
        if step is None:
            return None
        items.append(step)
    if not task.target[0] <= items[0].value <= task.target[1]:
        return None
    # Ascending for tiny models: one order of three numbers is easier to learn than six.
    return tuple(sorted(numbers) if task.prompt == "compact" else numbers), items[0].value


def _numbers(problem: Problem) -> tuple[int, ...]:
    return cast(tuple[int, ...], problem.data["numbers"])


@lru_cache(maxsize=8)
def _problems(task: Countdown, split: Literal["train", "test"]) -> tuple[Problem, ...]:
    count = task.train_problems if split == "train" else task.test_problems
    source, other = (task.train, task.test) if split == "train" else (task.test, task.train)
    # An evaluation on a test file needs no training data.
    other_problems = read_problems(other, task.read) if other and (split == "train" or not source) else ()
    if source:
        problems = read_problems(source, task.read, count)
        check_no_overlap(problems, other_problems, f"task.train {task.train!r} and task.test {task.test!r}")
        return problems
    rng = random.Random(f"countdown {split} {task.seed}")
    excluded = {tuple(sorted(_numbers(problem))) for problem in other_problems}

    def sample() -> Problem | None:
        puzzle = sample_puzzle(task, rng, split)
        return task.problem(*puzzle) if puzzle and tuple(sorted(puzzle[0])) not in excluded else None

    return distinct_problems(sample, count, f"task.{split}_problems")
