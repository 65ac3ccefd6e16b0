"""What a task is: problems to ask, a grade for every response, the parts that may never be fixed."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from stipule.errors import RecipeError

Span = tuple[int, int]
"""Characters [start, end) of a response."""

# Draws in a row without a new puzzle after which there are taken to be no more.
STALE_DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to ask.

    key: stable identity; the same puzzle has the same key in every split, run and version of the prompt.
    prompt: the user's turn; the chat template is the model's business.
    data: what the grader needs, plain values only.
    messages: the whole conversation before the response, where it is more than the user's turn.
    prefill: what the response starts after; it is given, not part of the response.
    """

    key: str
    prompt: str
    data: Mapping[str, object]
    conversation: tuple[Mapping[str, str], ...] | None = None
    prefill: str = ""

    @property
    def messages(self) -> "str | tuple[Mapping[str, str], ...]":
        """What a policy encodes: the messages of a conversation where there are any, else the user's turn.

        A prefill is a last message of the assistant's, which the response goes on with.
        """
        if not self.prefill:
            return self.conversation or self.prompt
        asked = self.conversation or ({"role": "user", "content": self.prompt},)
        return (*asked, {"role": "assistant", "content": self.prefill})


@dataclass(frozen=True, slots=True)
class Grade:
    """What a response is worth: the reward, its named parts, and whether it is right.

    Parts are shares of what can be had, in [0, 1]; only d1's own fines (tasks/d1_rewards.py) go below.
    """

    reward: float
    parts: Mapping[str, float]
    correct: bool


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of a tiny tokenizer.

    pattern: regular expression (Oniguruma) that cuts a text into words; every match is one of `words`.
    Decoding is plain concatenation, so no word carries a space.
    """

    words: tuple[str, ...]
    pattern: str


@runtime_checkable
class Task(Protocol):
    """A source of problems with a grader."""

    @property
    def name(self) -> str: ...

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of "train" or "test", keys distinct: a function of the task alone.

        RecipeError on other splits.
        """
        ...

    def grade(self, problem: Problem, response: str) -> Grade: ...

    def protected_spans(self, problem: Problem, response: str) -> list[Span]:
        """Spans that may never become an anchor, sorted and disjoint: the answer, its tags, and copies of it.

        A fixed answer would hand its reward to the whole group, and would never be trained.
        """
        ...

    def reference(self, problem: Problem) -> str | None:
        """A right response in the format asked for, if one is known: what `ground_truth` anchors are cut from."""
        ...


@runtime_checkable
class BatchGrader(Protocol):
    """A task whose rewards are functions of a whole batch."""

    def grade_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]: ...


@runtime_checkable
class Demonstrator(Protocol):
    """What the pre-training of a tiny base needs: words, and examples of a skill and of a habit that outvotes it."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def demonstrations(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Endless (prompt, response) pairs, none of them made from what the test problems are made of."""
        ...


def check_range(
    setting: str, value: float | tuple[int, int], meaning: str, low: float, high: float, hint: object
) -> None:
    """Raise RecipeError unless `value`, or both ends of an ascending pair, lie in [low, high]."""
    first, last = value if isinstance(value, tuple) else (value, value)
    if not low <= first <= last <= high:
        order = " in ascending order" if isinstance(value, tuple) else ""
        raise RecipeError(f"{setting} is {value}; it is {meaning} and must lie in [{low}, {high}]{order}; try {hint}")


def check_split(split: str) -> Literal["train", "test"]:
    """The split, if there is one of that name; RecipeError otherwise."""
    if split == "train":
        return "train"
    if split == "test":
        return "test"
    raise RecipeError(f"split is {split!r}; it names a set of problems and must be 'train' or 'test'; try 'test'")


def check_counts(train_problems: int, test_problems: int, habit: float) -> None:
    """Raise RecipeError unless the settings that every task made of puzzles shares are in their ranges."""
    check_range("task.train_problems", train_problems, "how many puzzles to train on", 1, 1_000_000, 4096)
    check_range("task.test_problems", test_problems, "how many puzzles to test on", 1, 1_000_000, 512)
    check_range("task.wrong_demo_fraction", habit, "the share of hasty demonstrations", 0, 1, 0.7)


def check_compact(prompt: str) -> None:
    """Raise RecipeError unless the prompts are compact ones, which demonstrations and their vocabulary are made for."""
    if prompt != "compact":
        raise RecipeError(
            f"task.prompt is {prompt!r}; demonstrations and their vocabulary are for tiny bases and exist only for"
            " 'compact'; set task.prompt to 'compact'"
        )


def distinct_problems(draw: Callable[[], Problem | None], count: int, setting: str) -> tuple[Problem, ...]:
    """The first `count` problems with different keys that `draw` gives; None is a failed draw.

    Raises RecipeError when the draws run dry, as they do when the settings allow fewer puzzles than were asked for.
    """
    found: dict[str, Problem] = {}
    stale = 0
    while len(found) < count:
        problem = draw()
        stale += 1
        if problem is not None and problem.key not in found:
            found[problem.key] = problem
            stale = 0
        if stale == STALE_DRAWS:
            raise RecipeError(
                f"{setting} is {count}; it is how many different puzzles to draw, and these settings gave"
                f" {len(found)}; ask for at most that many or widen the ranges"
            )
    return tuple(found.values())
