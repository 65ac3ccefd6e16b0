"""The work of one RL step: model calls, tokens and floating-point operations, by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stipule.plan.shape import NetworkShape
from stipule.plan.standin import full_responses, views_of_step
from stipule.training.cost import looked_at, plan_of
from stipule.training.settings import Recipe
from stipule.types import Views

# What a multiply-add counts, and how many products the backward pass of a product takes.
OPERATIONS = 2
# Fused attention computes its scores again in the backward pass: 5 products instead of 4 for the 2 of the forward.
ATTENTION_BACKWARD = {"eager": 2.0, "sdpa": 2.5, "flash_attention_2": 2.5}


@dataclass(frozen=True)
class Part:
    """One part of a step. `calls` are rows x model calls, `asked` the tokens that meet the LM head."""

    calls: int
    tokens: int
    asked: int
    body: float  # operations in the matrices of the blocks, adapters included
    attention: float  # and between tokens
    head: float  # and in the LM head

    @property
    def operations(self) -> float:
        return self.body + self.attention + self.head


PARTS = ("rollout", "old", "reference", "update")


@dataclass(frozen=True)
class Work:
    """One RL step with responses of full length and no row skipped: an upper bound."""

    rollout: Part
    old: Part
    reference: Part
    update: Part

    @property
    def parts(self) -> dict[str, Part]:
        return {name: getattr(self, name) for name in PARTS}

    @property
    def operations(self) -> float:
        return sum(part.operations for part in self.parts.values())


def work_of(recipe: Recipe, shape: NetworkShape, prompt: int) -> Work:
    """Counts a step whose prompts have this many tokens (padding included)."""
    responses = full_responses(recipe, prompt, padded=False)
    views = views_of_step(recipe, responses)
    rows, total = len(responses), prompt + recipe.sampler.length
    schedule = plan_of(recipe)
    calls = rows * schedule.forwards
    rollout = forward(shape, calls, total, rows * sum(looked_at(recipe)))
    later = [v for v in views[1:] if v is not views[0]] if recipe.objective.compares else []
    return Work(
        rollout,
        scored(shape, _distinct(later), total),
        scored(shape, _distinct(views) if recipe.objective.kl > 0 else [], total, adapters=False),
        learned(recipe, shape, views, total),
    )


def forward(shape: NetworkShape, calls: int, total: int, asked: int, adapters: bool = True) -> Part:
    """Model calls on rows of `total` tokens of which `asked` in all meet the head, nothing kept for a backward pass."""
    tokens = calls * total
    numbers = shape.body + (shape.adapters if adapters else 0)
    spared = shape.by_place + (shape.adapters_by_place if adapters else 0)
    return Part(
        calls,
        tokens,
        asked,
        float(OPERATIONS * (numbers * tokens - spared * (tokens - asked))),
        float(2 * OPERATIONS * shape.layers * shape.attention * total * tokens),  # scores, then the weighted values
        float(OPERATIONS * shape.head * asked),
    )


def scored(shape: NetworkShape, views: Sequence[Views], total: int, adapters: bool = True) -> Part:
    """Scoring without gradients."""
    calls, asked = _counts(views)
    return forward(shape, calls, total, asked, adapters)


def learned(recipe: Recipe, shape: NetworkShape, views: Sequence[Views], total: int) -> Part:
    """Forward and backward of the mu inner updates.

    The backward pass of a matrix takes one product for its input and, if it is trained, one for itself. Checkpointed
    blocks run forward twice, the last of them whole, and so does a trained head.
    """
    calls, asked = _counts(views)
    once = forward(shape, calls, total, asked)
    full = shape.adapters == 0
    again = int(recipe.model.checkpointing)
    tokens = once.tokens
    spared = 0 if again else tokens - asked
    base = OPERATIONS * (shape.body * tokens - shape.by_place * spared) * ((3 if full else 2) + again)
    adapters = OPERATIONS * (shape.adapters * tokens - shape.adapters_by_place * spared) * (3 + again)
    return Part(
        calls,
        tokens,
        asked,
        float(base + adapters),
        once.attention * (1 + again + ATTENTION_BACKWARD[recipe.model.attention]),
        once.head * (4 if full else 2),
    )


def _counts(views: Sequence[Views]) -> tuple[int, int]:
    return sum(int(v.busy.sum()) for v in views), sum(int((v.weight != 0).sum()) for v in views)


def _distinct(views: Sequence[Views]) -> list[Views]:
    """An estimator without noise repeats one view, and it is scored once."""
    return list({id(v): v for v in views}.values())
