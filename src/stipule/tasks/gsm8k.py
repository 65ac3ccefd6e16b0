"""GSM8K: grade-school word problems; the answer is a number (Cobbe et al. 2021)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, cast

from stipule.errors import RecipeError
from stipule.tasks.answers import answer_spans, answer_text, merge_spans
from stipule.tasks.boxed import boxed_spans, final_answer
from stipule.tasks.d1_answers import gsm8k_value
from stipule.tasks.d1_rewards import GSM8K_WEIGHTS, gsm8k_parts
from stipule.tasks.dataset import split_problems
from stipule.tasks.dataset_io import get_column
from stipule.tasks.number_parsing import number_spans, number_with_unit, plain_number
from stipule.tasks.problem import Grade, Problem, Span, check_split
from stipule.tasks.prompts import format_prompt, format_response, prefill
from stipule.tasks.weights import merge_weights, weighted_sum

HUB = {"train": "openai/gsm8k:train", "test": "openai/gsm8k:test"}
STRICT_WEIGHTS = {"correct": 0.9, "format": 0.1}

_CALCULATOR = re.compile("<<[^<>]*>>")  # calculator annotations in the published solutions


@dataclass(frozen=True, kw_only=True)
class Gsm8k:
    """GSM8K.

    prompt: "d1": the format of d1's training (Zhao et al. 2025). "d1_eval": that of d1's evaluation, with a \\boxed{}
    and <reasoning> as the start of the response. "stipule": our own. The texts are ours (tasks/prompt_templates).
    grading: "strict" reads exactly one number; "d1" is the rule of d1's evaluation and its training reward
    (docs/grading.md).
    train, test: files of JSON lines or CSV with question and answer (`... #### gold`), or names on the hub; None is
    openai/gsm8k.
    weights: of the reward parts; strict: correct 0.9, format 0.1; d1: correctness 2, integer, soft_format,
    strict_format and xml_count 0.5 each.
    """

    kind: Literal["gsm8k"] = "gsm8k"
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
        return GSM8K_WEIGHTS if self.grading == "d1" else STRICT_WEIGHTS

    def problems(self, split: str) -> tuple[Problem, ...]:
        count = self.train_problems if check_split(split) == "train" else self.test_problems
        return split_problems(self._read, self.train or HUB["train"], self.test or HUB["test"], split, count)

    def _read(self, location: str, row: Any) -> Problem:
        question, answer = (get_column(location, row, name) for name in ("question", "answer"))
        solution, separator, gold = str(answer).rpartition("####")
        try:
            return self.problem(str(question), gold.strip(), _CALCULATOR.sub("", solution).strip() if separator else "")
        except RecipeError as cause:
            raise RecipeError(f"{location}: {cause}") from cause

    def problem(self, question: str, gold: object, solution: str = "") -> Problem:
        """The problem with this gold answer; None if it is unknown. RecipeError if it is not a number."""
        if isinstance(gold, float) and gold.is_integer():
            gold = int(gold)
        if gold is not None and plain_number(str(gold)) is None:
            raise RecipeError(f"the answer is {gold!r}; it must be a number such as 18, -3 or 1,080; correct it")
        digest = hashlib.sha256(question.encode("utf-8", "replace")).hexdigest()[:16]
        data = {"gold": None if gold is None else str(gold), "solution": solution}
        text = format_prompt(self.kind, self.prompt, question=question)
        return Problem(f"{self.kind}:{digest}", text, data, prefill=prefill(self.prompt))

    def grade(self, problem: Problem, response: str) -> Grade:
        """strict: correct = the answer is the gold number; format = a number in a closed answer tag."""
        gold = cast("str | None", problem.data["gold"])
        number = None if gold is None else plain_number(gold)
        if self.grading == "d1":
            # The published evaluation cannot read the gold answers below 0 (2 of its 1,130 items).
            correct = number is not None and number >= 0 and gsm8k_value(response) == float(number)
            parts = {"correct": float(correct), **gsm8k_parts(response, gold or "")}
        else:
            answer = final_answer(response)
            value = None if answer is None else number_with_unit(answer)
            correct = value is not None and value == number
            is_tagged = value is not None and answer_text(response) is not None
            parts = {"correct": float(correct), "format": float(is_tagged)}
        return Grade(weighted_sum(parts, merge_weights(self.weights, self._defaults)), parts, correct)

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """Answers with their tags, \\boxed{}, and every copy of the gold number."""
        gold = plain_number(str(problem.data["gold"])) or Fraction(0)
        return merge_spans([*answer_spans(response), *boxed_spans(response), *number_spans(response, gold)])

    def reference(self, problem: Problem) -> str | None:
        """The published solution, if there is one, in the prompt's format."""
        gold, solution = problem.data["gold"], cast(str, problem.data["solution"])
        if gold is None or not solution:
            return None
        answer = f"\\boxed{{{gold}}}" if self.prompt == "d1_eval" else str(gold)
        return format_response(self.prompt, solution, answer)
