"""MATH: competition problems with a LaTeX expression for an answer (Hendrycks et al. 2021)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from stipule.errors import RecipeError
from stipule.tasks.answers import answer_spans, answer_text, merge_spans
from stipule.tasks.boxed import boxed_spans, final_answer, last_boxed
from stipule.tasks.d1_answers import math_right
from stipule.tasks.d1_rewards import MATH_WEIGHTS, math_parts
from stipule.tasks.dataset import split_problems
from stipule.tasks.dataset_io import get_column
from stipule.tasks.equivalence import equivalent
from stipule.tasks.number_parsing import number_spans, plain_number
from stipule.tasks.problem import Grade, Problem, Span, check_split
from stipule.tasks.prompts import format_prompt, format_response, prefill
from stipule.tasks.weights import chosen_weights, total

HUB = {"train": "ankner/math-500:train", "test": "HuggingFaceH4/MATH-500:test"}
STRICT_WEIGHTS = {"correct": 0.9, "format": 0.1}


@dataclass(frozen=True, kw_only=True)
class Math:
    """MATH.

    prompt: "d1" is d1's training format (Zhao et al. 2025), "d1_eval" that of its evaluation, which starts the
    response with <reasoning>, "stipule" ours; all in our words, and all ask for a \\boxed{} (tasks/prompts).
    grading: "strict" is equality of meaning, by math-verify where texts and numbers do not settle it; "d1" is the
    published evaluation's rule, and its training reward (docs/grading.md).
    train, test: files of JSON lines or CSV with problem and answer, or solution with a last \\boxed{}, or names on the
    hub; None is ankner/math-500 and HuggingFaceH4/MATH-500.
    weights: of the parts; strict: correct 0.9, format 0.1; d1: correctness 2, format 1.
    """

    kind: Literal["math"] = "math"
    prompt: Literal["d1", "d1_eval", "stipule"] = "d1"
    grading: Literal["strict", "d1"] = "strict"
    train: str | None = None
    test: str | None = None
    train_problems: int | None = None  # only the first n
    test_problems: int | None = None
    weights: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        chosen_weights(self.weights, self._defaults)

    @property
    def name(self) -> str:
        return self.kind

    @property
    def _defaults(self) -> Mapping[str, float]:
        return MATH_WEIGHTS if self.grading == "d1" else STRICT_WEIGHTS

    def problems(self, split: str) -> tuple[Problem, ...]:
        count = self.train_problems if check_split(split) == "train" else self.test_problems
        return split_problems(self._read, self.train or HUB["train"], self.test or HUB["test"], split, count)

    def _read(self, where: str, row: Any) -> Problem:
        question, solution = str(get_column(where, row, "problem", "question")), str(row.get("solution") or "")
        gold = last_boxed(solution) if row.get("answer") is None and solution else get_column(where, row, "answer")
        try:
            return self.problem(question, gold, solution)
        except RecipeError as cause:
            raise RecipeError(f"{where}: {cause}") from cause

    def problem(self, question: str, gold: object, solution: str = "") -> Problem:
        """The problem with this answer; RecipeError if there is none."""
        if not isinstance(gold, str | int | float) or not str(gold).strip():
            raise RecipeError(
                f"the answer is {gold!r}; it must be a LaTeX expression, or stand in the solution's last \\boxed{{}}"
            )
        digest = hashlib.sha256(question.encode("utf-8", "replace")).hexdigest()[:16]
        text = format_prompt(self.kind, self.prompt, question=question)
        data = {"gold": str(gold), "solution": solution}
        return Problem(f"{self.kind}:{digest}", text, data, prefill=prefill(self.prompt))

    def grade(self, problem: Problem, response: str) -> Grade:
        """strict: correct = the answer means the gold one; format = a box in a closed answer tag.

        undecided = neither could be shown in time or memory; it counts as wrong.
        """
        gold = cast(str, problem.data["gold"])
        if self.grading == "d1":
            correct = math_right(response, gold)
            parts = {"correct": float(correct), **math_parts(response, gold)}
        else:
            answer = final_answer(response)
            verdict = "wrong" if answer is None else equivalent(gold, answer)
            correct = verdict == "right"
            boxed = last_boxed(answer_text(response) or "") is not None
            parts = {"correct": float(correct), "format": float(boxed), "undecided": float(verdict == "undecided")}
        return Grade(total(parts, chosen_weights(self.weights, self._defaults)), parts, correct)

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """Answers with their tags, boxes, and the gold answer wherever it stands, however it is spaced."""
        gold = cast(str, problem.data["gold"])
        return merge_spans([*answer_spans(response), *boxed_spans(response), *_copies(response, gold)])

    def reference(self, problem: Problem) -> str | None:
        """The published solution in the format that is asked for, if there is one."""
        gold, solution = problem.data["gold"], cast(str, problem.data["solution"])
        return format_response(self.prompt, solution, f"\\boxed{{{gold}}}") if solution else None


def _copies(text: str, gold: str) -> Iterator[Span]:
    value = plain_number(gold)
    if value is not None:
        yield from number_spans(text, value)
    marks = re.findall(r"\\[dt]?frac|[^ \t\r\n]", gold)
    parts = [r"\\[dt]?frac" if mark.endswith("frac") and mark[0] == "\\" else re.escape(mark) for mark in marks]
    # A copy does not begin or end inside a word or a number.
    before, after = (r"(?<![0-9A-Za-z])" * marks[0].isalnum(), r"(?![0-9A-Za-z])" * marks[-1].isalnum())
    yield from (found.span() for found in re.finditer(before + r"\s*".join(parts) + after, text))
