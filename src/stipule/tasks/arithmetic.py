"""Arithmetic: generated sums of two numbers; the answer is a number; for tests and first steps."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, cast

from stipule.tasks.answers import answer_spans, answer_text, merge_spans
from stipule.tasks.boxed import boxed_spans, final_answer
from stipule.tasks.number_parsing import number_spans, plain_number
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
from stipule.tasks.prompts import format_prompt, format_response
from stipule.tasks.weights import merge_weights, weighted_sum

TRAIN_FRACTION = 0.8
STRICT_WEIGHTS = {"correct": 0.9, "format": 0.1}


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Sums, differences and products of two numbers in [1, largest]; a hash of the sum selects its split.

    prompt: "stipule" is a sentence with the answer in tags; "compact" is `7+5` with the response `12`, for tiny models.
    weights: of the reward parts: correct 0.9, format 0.1.
    """

    kind: Literal["arithmetic"] = "arithmetic"
    prompt: Literal["stipule", "compact"] = "stipule"
    largest: int = 99
    operations: Literal["+", "+-", "+-*"] = "+-"
    train_problems: int = 4096
    test_problems: int = 512
    seed: int = 0
    weights: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_range("task.largest", self.largest, "the greatest number of a sum", 2, 1000, 99)
        check_counts(self.train_problems, self.test_problems, 0.0)
        merge_weights(self.weights, STRICT_WEIGHTS)

    @property
    def name(self) -> str:
        return self.kind

    @property
    def vocabulary(self) -> Vocabulary:
        check_compact(self.prompt)
        return Vocabulary(tuple("0123456789+-*"), ".")

    def problems(self, split: str) -> tuple[Problem, ...]:
        return _problems(self, check_split(split))

    def problem(self, first: int, sign: str, second: int) -> Problem:
        """The problem `first sign second`."""
        value = {"+": first + second, "-": first - second, "*": first * second}[sign]
        text = f"{first}{sign}{second}"
        prompt = text if self.prompt == "compact" else format_prompt(self.kind, self.prompt, sum=text)
        return Problem(f"{self.kind}:{text}", prompt, {"gold": str(value), "sum": text})

    def split_of(self, text: str) -> Literal["train", "test"]:
        """The split of this sum."""
        digest = hashlib.sha256(f"arithmetic {self.seed} {text}".encode()).digest()
        return "train" if int.from_bytes(digest[:8]) < TRAIN_FRACTION * 2**64 else "test"

    def grade(self, problem: Problem, response: str) -> Grade:
        """correct = the answer is the gold number; format = it is a number, in a closed tag unless compact."""
        is_compact = self.prompt == "compact"
        answer = response if is_compact else final_answer(response)
        value = None if answer is None else plain_number(answer)
        correct = value is not None and value == plain_number(cast(str, problem.data["gold"]))
        has_format = value is not None and (is_compact or answer_text(response) is not None)
        parts = {"correct": float(correct), "format": float(has_format)}
        return Grade(weighted_sum(parts, merge_weights(self.weights, STRICT_WEIGHTS)), parts, correct)

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """Answers with their tags, \\boxed{}, and every copy of the value; all of a compact response."""
        if self.prompt == "compact":
            return merge_spans([(0, len(response))])
        value = plain_number(cast(str, problem.data["gold"]))
        assert value is not None, "the gold answer is written by problem()"
        return merge_spans([*answer_spans(response), *boxed_spans(response), *number_spans(response, value)])

    def reference(self, problem: Problem) -> str:
        gold = cast(str, problem.data["gold"])
        if self.prompt == "compact":
            return gold
        return format_response(self.prompt, f"{problem.data['sum']} = {gold}", gold)

    def demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Compact (sum, value) pairs from the training sums, all correct.

        RecipeError if the task's prompts are not compact.
        """
        check_compact(self.prompt)
        problems = self.problems("train")
        return ((problem.prompt, str(problem.data["gold"])) for problem in iter(lambda: rng.choice(problems), None))


@lru_cache(maxsize=8)
def _problems(task: Arithmetic, split: Literal["train", "test"]) -> tuple[Problem, ...]:
    rng = random.Random(f"arithmetic {split} {task.seed}")

    def sample() -> Problem | None:
        first, second = rng.randint(1, task.largest), rng.randint(1, task.largest)
        problem = task.problem(first, rng.choice(task.operations), second)
        return problem if task.split_of(cast(str, problem.data["sum"])) == split else None

    count = task.train_problems if split == "train" else task.test_problems
    return distinct_problems(sample, count, f"task.{split}_problems")
