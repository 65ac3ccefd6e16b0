"""A dataset of yours with rewards of yours: any JSON lines or hub dataset with a `prompt` column, TRL's conventions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from stipule.errors import RecipeError
from stipule.tasks.answers import answer_spans, merge_spans
from stipule.tasks.dataset_io import column_names, read_rows
from stipule.tasks.problem import Grade, Problem, Span, check_split
from stipule.tasks.rewards import Reward, reward_grades


@dataclass(frozen=True, kw_only=True)
class Custom:
    """Problems are the rows of a dataset; every column but `prompt` goes to the reward functions by its name.

    `train` and `test` are files of JSON lines, or names on the hub with an optional split (`owner/name:split`). A row
    in both is refused: its prompt would be trained on and tested. `answer` names a column with the right answer, which
    no anchor may hold then.
    """

    reward: Reward
    train: str
    test: str
    kind: Literal["custom"] = "custom"
    answer: str | None = None

    @property
    def name(self) -> str:
        return "custom"

    def problems(self, split: str) -> tuple[Problem, ...]:
        """The rows of a split.

        Raises RecipeError, naming file and line, on what is no row, and on splits that overlap.
        """
        wanted = check_split(split)
        found = {name: _problems(getattr(self, name)) for name in ("train", "test")}
        both = {p.key for p in found["train"]} & {p.key for p in found["test"]}
        if both:
            raise RecipeError(
                f"task.train {self.train!r} and task.test {self.test!r} share {len(both)} prompts, which would be "
                "trained on and tested; remove them from one of the two"
            )
        return found[wanted]

    def grade(self, problem: Problem, response: str) -> Grade:
        return self.grade_all([problem], [response])[0]

    def grade_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """By the reward functions, once a batch."""
        return reward_grades(self.reward, problems, responses)

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """Tagged answers, and copies of the answer column."""
        answer = str(problem.data.get(self.answer, "")) if self.answer else ""
        copies = [(at, at + len(answer)) for at in range(len(response)) if answer and response.startswith(answer, at)]
        return merge_spans([*answer_spans(response), *copies])

    def reference(self, problem: Problem) -> str | None:
        """The column `reference`, if there is one."""
        found = problem.data.get("reference")
        return found if isinstance(found, str) else None


@lru_cache(maxsize=8)
def _problems(source: str) -> tuple[Problem, ...]:
    problems: dict[str, Problem] = {}
    for where, row in read_rows(source):
        if not isinstance(row, Mapping) or "prompt" not in row:
            raise RecipeError(f"{where} is not an object with a prompt column; known columns: {column_names(row)}")
        prompt = row["prompt"]
        chat = isinstance(prompt, list) and prompt and all(_is_message(m) for m in prompt)
        if not chat and not isinstance(prompt, str):
            raise RecipeError(
                f"{where} has a prompt that is neither a string nor a list of messages with role and content: "
                f"{prompt!r}"
            )
        key = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]
        if key in problems:
            raise RecipeError(f"{where} repeats an earlier prompt; a problem is identified by it; keep one of them")
        data = {name: value for name, value in row.items() if name != "prompt"}
        text = prompt[-1]["content"] if chat else prompt
        problems[key] = Problem(key, text, data, tuple(prompt) if chat else None)
    if not problems:
        raise RecipeError(f"{source} holds no problem")
    return tuple(problems.values())


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
