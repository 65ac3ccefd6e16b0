"""Your own dataset and rewards: a file or a hub dataset with a `prompt` column, in TRL's conventions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from stipule.errors import RecipeError
from stipule.tasks.answers import answer_spans, merge_spans
from stipule.tasks.dataset_io import column_names, read_rows
from stipule.tasks.problem import Grade, Problem, RewardContext, Span, check_split
from stipule.tasks.rewards import ARGUMENTS, Reward, reward_grades

# Columns from which TRL takes what a model of images sees.
IMAGE_COLUMNS = ("image", "images")


@dataclass(frozen=True, kw_only=True)
class Custom:
    """Problems from the rows of a dataset; the reward functions get every column except `prompt` by its name.

    `train` and `test` are files (JSON lines, a JSON array, CSV or Parquet), or names on the hub with an optional split
    (`owner/name:split`); without `test` nothing can be evaluated. A prompt in both is an error: it would be trained on
    and tested. `answer` names the column with the correct answer; anchors then never contain that answer.
    """

    reward: Reward
    train: str
    test: str | None = None
    kind: Literal["custom"] = "custom"
    answer: str | None = None

    @property
    def name(self) -> str:
        return "custom"

    def problems(self, split: str) -> tuple[Problem, ...]:
        """The rows of a split.

        Raises RecipeError, with file and line, for a row that cannot be read, and for splits that overlap.
        """
        split = check_split(split)
        if split == "test" and self.test is None:
            raise RecipeError("task.test is not set, so there are no problems to evaluate; set it to a file of them")
        splits = {name: _problems(source) for name in ("train", "test") if (source := getattr(self, name)) is not None}
        check_splits(self, splits["train"], splits.get("test", ()))
        return splits[split]

    def grade(self, problem: Problem, response: str) -> Grade:
        """The grade of one text, whose tokens are unknown."""
        return self.grade_all([problem], [response], RewardContext([[]], None))[0]

    def grade_all(self, problems: Sequence[Problem], responses: Sequence[str], context: RewardContext) -> list[Grade]:
        """Grades by the reward functions; each is called once for the batch."""
        return reward_grades(self.reward, problems, responses, context)

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """Tagged answers, and copies of the answer column."""
        answer = str(problem.data.get(self.answer, "")) if self.answer else ""
        starts = [start for start in range(len(response)) if answer and response.startswith(answer, start)]
        return merge_spans([*answer_spans(response), *((start, start + len(answer)) for start in starts)])

    def reference(self, problem: Problem) -> str | None:
        """The text of the column `reference`, if there is one."""
        reference = problem.data.get("reference")
        return reference if isinstance(reference, str) else None


def check_splits(task: Custom, train: Sequence[Problem], test: Sequence[Problem]) -> None:
    """Raises RecipeError for a prompt in both splits, and for a reward function that needs a column of neither."""
    overlap = {problem.key for problem in train} & {problem.key for problem in test}
    if overlap:
        raise RecipeError(
            f"task.train {task.train!r} and task.test {task.test!r} share {len(overlap)} prompts, which would be "
            "trained on and tested; remove them from one of the two"
        )
    task.reward.check(dict.fromkeys(name for problem in (*train, *test) for name in problem.data))


@lru_cache(maxsize=8)
def _problems(source: str) -> tuple[Problem, ...]:
    return problems_of_rows(read_rows(source), source)


def problems_of_rows(rows: Iterable[tuple[str, Any]], source: str) -> tuple[Problem, ...]:
    """The problems of (location, row) pairs.

    Raises RecipeError, with the location, for a row without a prompt, and for one that repeats an earlier prompt.
    """
    problems: dict[str, Problem] = {}
    for location, row in rows:
        if not isinstance(row, Mapping) or "prompt" not in row:
            raise RecipeError(
                f"{location} is not an object with a prompt column; its columns: {column_names(row)}; add or rename one"
            )
        _check_columns(location, row)
        prompt = _read_prompt(location, row["prompt"])
        is_chat = not isinstance(prompt, str)
        key = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]
        if key in problems:
            raise RecipeError(f"{location} repeats an earlier prompt; prompts must be different; keep one of them")
        data = {name: value for name, value in row.items() if name != "prompt"}
        text = prompt[-1]["content"] if is_chat else prompt
        problems[key] = Problem(key, text, data, tuple(prompt) if is_chat else None)
    if not problems:
        raise RecipeError(f"{source} contains no problem; give another file")
    return tuple(problems.values())


def _check_columns(location: str, row: Mapping[str, Any]) -> None:
    """Raises RecipeError for a column that reward functions would not get, or that the model would not see."""
    if taken := [name for name in row if name in ARGUMENTS]:
        raise RecipeError(
            f"{location} has a column {taken[0]}, which is the name of an argument of every reward function "
            f"({', '.join(ARGUMENTS)}); rename the column"
        )
    if images := [name for name in row if name in IMAGE_COLUMNS and row[name]]:
        raise RecipeError(
            f"{location} has a column {images[0]}; TRL shows it to the model, but the models read text only; remove "
            "the column, or rename it if only a reward function reads it"
        )


def _read_prompt(location: str, prompt: Any) -> Any:
    """A text, or messages whose role and content are texts; RecipeError for any other prompt."""
    if isinstance(prompt, str):
        return prompt
    messages = (
        [dict(message) if isinstance(message, Mapping) else {} for message in prompt or ()] if _is_list(prompt) else []
    )
    for message in messages:
        if _is_list(message.get("content")):
            parts = [str(part.get("type")) if isinstance(part, Mapping) else "?" for part in message["content"]]
            raise RecipeError(
                f"{location} has a message whose content is a list of parts ({', '.join(parts)}); a model reads only "
                "text, so the content must be one string; join the parts, or remove prompts with images"
            )
    if not messages or not all(isinstance(m.get(key), str) for m in messages for key in ("role", "content")):
        raise RecipeError(
            f"{location} has a prompt that is neither a string nor a list of messages with role and content: "
            f"{prompt!r}; correct or remove it"
        )
    # Parquet gives every message the fields of all messages; those it does not have are None.
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
