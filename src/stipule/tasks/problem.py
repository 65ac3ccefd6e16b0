"""The interface of a task: problems, a grade for every response, and the spans that may not become anchors."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from stipule.errors import RecipeError, StipuleError

Span = tuple[int, int]
"""Characters [start, end) of a response."""

# After this many samples in a row without a new puzzle, no more puzzles are assumed to exist.
MAX_FAILED_SAMPLES = 20_000


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: its prompt and the data that its grader reads.

    key: stable identity; the same puzzle has the same key in every split, run and version of the prompt.
    prompt: the text of the user's message, without a chat template.
    data: plain values for the grader.
    conversation: all messages before the response, where there are more than the user's message.
    prefill: text at the start of the assistant's message; it is given, not part of the response.
    """

    key: str
    prompt: str
    data: Mapping[str, object]
    conversation: tuple[Mapping[str, str], ...] | None = None
    prefill: str = ""

    @property
    def messages(self) -> "str | tuple[Mapping[str, str], ...]":
        """The input of Policy.encode: the conversation where there is one, else the text of the user's message.

        A prefill is added as a last message with the role "assistant", which the response continues.
        """
        if not self.prefill:
            return self.conversation or self.prompt
        before = self.conversation or ({"role": "user", "content": self.prompt},)
        return (*before, {"role": "assistant", "content": self.prefill})


@dataclass(frozen=True, slots=True)
class Grade:
    """The grade of a response: its reward, the named parts of the reward, and whether the answer is correct.

    Each part is a fraction of its maximum, in [0, 1]; only the penalties of d1 (tasks/d1_rewards.py) go below 0. The
    parts of your own reward functions are what they return; a function that does not apply has no part.
    """

    reward: float
    parts: Mapping[str, float]
    correct: bool


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of a tiny tokenizer.

    pattern: regular expression (Oniguruma) that splits a text into words; every match is one of `words`.
    Decoding concatenates words, so no word contains a space.
    """

    words: tuple[str, ...]
    pattern: str


@runtime_checkable
class Task(Protocol):
    """A source of problems with a grader."""

    @property
    def name(self) -> str: ...

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of "train" or "test", with distinct keys; they depend on the task's settings only.

        RecipeError on other splits.
        """
        ...

    def grade(self, problem: Problem, response: str) -> Grade: ...

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """Spans that may never become an anchor, sorted and disjoint: the answer, its tags, and copies of it.

        An anchor with the answer would give its reward to the whole group, and the answer would never be trained.
        """
        ...

    def reference(self, problem: Problem) -> str | None:
        """A correct response in the prompt's format, if one is known; `ground_truth` anchors are taken from it."""
        ...


@dataclass
class RewardContext:
    """What reward functions may read besides problems and texts, and what they log.

    completion_ids: the tokens of each response up to and including the first end-of-text token.
    trainer_state: a `transformers.TrainerState`.
    metrics, columns: the values of `log_metric` and `log_extra`.
    """

    completion_ids: Sequence[Sequence[int]]
    trainer_state: Any
    metrics: dict[str, list[float]] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        """Adds a number to the step's line in metrics.jsonl, under `logged/NAME`; the mean if called repeatedly."""
        self.metrics.setdefault(name, []).append(float(value))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Adds a column to the saved rollouts: one value per response. What JSON cannot hold is saved as text."""
        if len(values) != len(self.completion_ids):
            raise StipuleError(
                f"log_extra({column!r}, ...) got {len(values)} values for {len(self.completion_ids)} responses; "
                "give one for each"
            )
        self.columns[column] = json.loads(json.dumps(list(values), default=str))


@runtime_checkable
class BatchGrader(Protocol):
    """A task that computes the rewards of a whole batch in one call."""

    def grade_all(
        self, problems: Sequence[Problem], responses: Sequence[str], context: RewardContext
    ) -> list[Grade]: ...


@runtime_checkable
class Demonstrator(Protocol):
    """A task that can pre-train a tiny base: it has a vocabulary, and demonstrations of which a fraction is wrong."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Endless (prompt, response) pairs; none uses the numbers or solution grids of the test problems."""
        ...


def mean_parts(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each part over the grades that have it."""
    values: dict[str, list[float]] = {}
    for grade_parts in parts:
        for name, value in grade_parts.items():
            values.setdefault(name, []).append(value)
    return {name: sum(part_values) / len(part_values) for name, part_values in values.items()}


def check_range(
    setting: str, value: float | tuple[int, int], meaning: str, low: float, high: float, hint: object
) -> None:
    """Raise RecipeError unless `value`, or both ends of an ascending pair, lie in [low, high]."""
    first, last = value if isinstance(value, tuple) else (value, value)
    if not low <= first <= last <= high:
        order = " in ascending order" if isinstance(value, tuple) else ""
        raise RecipeError(f"{setting} is {value}; it is {meaning} and must lie in [{low}, {high}]{order}; try {hint}")


def check_split(split: str) -> Literal["train", "test"]:
    """The split; RecipeError if there is no split of that name."""
    if split == "train":
        return "train"
    if split == "test":
        return "test"
    raise RecipeError(f"split is {split!r}; it names a set of problems and must be 'train' or 'test'; try 'test'")


def check_counts(train_problems: int, test_problems: int, wrong_demo_fraction: float) -> None:
    """Raise RecipeError unless the settings that all puzzle tasks have in common are in range."""
    check_range("task.train_problems", train_problems, "the number of training puzzles", 1, 1_000_000, 4096)
    check_range("task.test_problems", test_problems, "the number of test puzzles", 1, 1_000_000, 512)
    meaning = "the fraction of wrong demonstrations"
    check_range("task.wrong_demo_fraction", wrong_demo_fraction, meaning, 0, 1, 0.7)


def check_compact(prompt: str, tiny_prompts: Sequence[str] = ("compact",)) -> None:
    """Raise RecipeError unless the prompts are for tiny bases; only these have demonstrations and a vocabulary."""
    if prompt not in tiny_prompts:
        raise RecipeError(
            f"task.prompt is {prompt!r}; demonstrations and their vocabulary are for tiny bases and exist only for"
            f" {' and '.join(map(repr, tiny_prompts))}; set task.prompt to {' or '.join(map(repr, tiny_prompts))}"
        )


def distinct_problems(sample: Callable[[], Problem | None], count: int, setting: str) -> tuple[Problem, ...]:
    """The first `count` problems with different keys that `sample` returns; None is a failed sample.

    Raises RecipeError after MAX_FAILED_SAMPLES samples without a new problem: the settings allow too few puzzles.
    """
    problems: dict[str, Problem] = {}
    failed = 0
    while len(problems) < count:
        problem = sample()
        failed += 1
        if problem is not None and problem.key not in problems:
            problems[problem.key] = problem
            failed = 0
        if failed == MAX_FAILED_SAMPLES:
            raise RecipeError(
                f"{setting} is {count}; it is the number of different puzzles to generate, and these settings gave"
                f" {len(problems)}; ask for at most that many or widen the ranges"
            )
    return tuple(problems.values())
