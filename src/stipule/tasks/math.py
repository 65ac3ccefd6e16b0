"""MATH: competition problems; the answer is a LaTeX expression (Hendrycks et al. 2021)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from stipule.errors import RecipeError
from stipule.tasks.answers import answer_spans, answer_text, merge_spans
from stipule.tasks.boxed import boxed_spans, final_answer, last_boxed
from stipule.tasks.d1_answers import is_math_correct
from stipule.tasks.d1_rewards import MATH_WEIGHTS, math_parts
from stipule.tasks.dataset import split_problems
from stipule.tasks.dataset_io import get_column
from stipule.tasks.equivalence import equivalent
from stipule.tasks.number_parsing import number_spans, plain_number
from stipule.tasks.problem import Grade, Problem, Span, check_split
from stipule.tasks.prompts import format_prompt, format_response, prefill
from stipule.tasks.weights import merge_weights, weighted_sum

HUB = {"train": "ankner/math-500:train", "test": "HuggingFaceH4/MATH-500:test"}
STRICT_WEIGHTS = {"correct": 0.9, "format": 0.1}


@dataclass(frozen=True, kw_only=True)
class Math:
    """MATH.

    prompt: "d1": the format of d1's training (Zhao et al. 2025). "d1_eval": that of d1's evaluation, with <reasoning>
    as the start of the response. "stipule": our own. All texts are ours and ask for a \\boxed{}
    (tasks/prompt_templates).
    grading: "strict" is mathematical equality, by math-verify if texts and numbers do not decide; "d1" is the rule of
    d1's evaluation and its training reward (docs/grading.md).
    train, test: files of JSON lines or CSV with problem and answer, or a solution that ends with a \\boxed{}, or names
    on the hub; None is ankner/math-500 and HuggingFaceH4/MATH-500.
    weights: of the reward parts; strict: correct 0.9, format 0.1; d1: correctness 2, format 1.
    """

    kind: Literal["math"] = "math"
    prompt: Literal["d1", "d1_eval", "stipule"] = "d1"
    grading: Literal["strict", "d1"] = "strict"
    train: str | None = None
    test: str | None = None
    train_problems: int | None = None  # use only the first n problems; null: all
    test_problems: int | None = None  # use only the first n problems; null: all
    weights: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        merge_weights(self.weights, self._defaults)

    @property
    def name(self) -> str:
        return self.kind

    @property
    def _defaults(self) -> Mapping[str, float]:
        return MATH_WEIGHTS if self.grading == "d1" else STRICT_WEIGHTS

    def problems(self, split: str) -> tuple[Problem, ...]:
        count = self.train_problems if check_split(split) == "train" else self.test_problems
        return split_problems(self._read, self.train or HUB["train"], self.test or HUB["test"], split, count)

    def _read(self, location: str, row: Any) -> Problem:
        question, solution = str(get_column(location, row, "problem", "question")), str(row.get("solution") or "")
        gold = last_boxed(solution) if row.get("answer") is None and solution else get_column(location, row, "answer")
        try:
            return self.problem(question, gold, solution)
        except RecipeError as cause:
            raise RecipeError(f"{location}: {cause}") from cause

    def problem(self, question: str, gold: object, solution: str = "") -> Problem:
        """The problem with this gold answer; RecipeError if the answer is empty."""
        if not isinstance(gold, str | int | float) or not str(gold).strip():
            raise RecipeError(
                f"the answer is {gold!r}; it must be a LaTeX expression, or the solution must end with a \\boxed{{}}"
            )
        digest = hashlib.sha256(question.encode("utf-8", "replace")).hexdigest()[:16]
        text = format_prompt(self.kind, self.prompt, question=question)
        data = {"gold": str(gold), "solution": solution}
        return Problem(f"{self.kind}:{digest}", text, data, prefill=prefill(self.prompt))

    def grade(self, problem: Problem, response: str) -> Grade:
        """strict: correct = the answer equals the gold answer; format = a \\boxed{} in a closed answer tag.

        undecided = math-verify reached its limit of time or memory; the answer counts as wrong.
        """
        gold = cast(str, problem.data["gold"])
        if self.grading == "d1":
            correct = is_math_correct(response, gold)
            parts = {"correct": float(correct), **math_parts(response, gold)}
        else:
            answer = final_answer(response)
            verdict = "wrong" if answer is None else equivalent(gold, answer)
            correct = verdict == "right"
            boxed = last_boxed(answer_text(response) or "") is not None
            parts = {"correct": float(correct), "format": float(boxed), "undecided": float(verdict == "undecided")}
        return Grade(weighted_sum(parts, merge_weights(self.weights, self._defaults)), parts, correct)

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """Answers with their tags, \\boxed{}, and every copy of the gold answer, with any spacing."""
        gold = cast(str, problem.data["gold"])
        return merge_spans([*answer_spans(response), *boxed_spans(response), *_copies(response, gold)])

    def reference(self, problem: Problem) -> str | None:
        """The published solution, if there is one, in the prompt's format."""
        gold, solution = problem.data["gold"], cast(str, problem.data["solution"])
        return format_response(self.prompt, solution, f"\\boxed{{{gold}}}") if solution else None


def _copies(text: str, gold: str) -> Iterator[Span]:
    value = plain_number(gold)
    if value is not None:
        yield from number_spans(text, value)
    symbols = re.findall(r"\\[dt]?frac|[^ \t\r\n]", gold)
    patterns = [r"\\[dt]?frac" if s.endswith("frac") and s[0] == "\\" else re.escape(s) for s in symbols]
    # A copy does not begin or end inside a word or a number.
    before, after = (r"(?<![0-9A-Za-z])" * symbols[0].isalnum(), r"(?![0-9A-Za-z])" * symbols[-1].isalnum())
    yield from (match.span() for match in re.finditer(before + r"\s*".join(patterns) + after, text))
