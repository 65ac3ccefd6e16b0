"""The work of one RL step: model calls, tokens and floating-point operations, by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stipule.plan.dummy_model import full_length_rollouts, mask_samples_of_step
from stipule.plan.shape import NetworkShape
from stipule.training.cost import candidates_per_call, schedule_of
from stipule.training.settings import Recipe
from stipule.types import MaskSamples

# What a multiply-add counts, and how many products the backward pass of a product takes.
OPERATIONS = 2
# Fused attention computes its scores again in the backward pass: 5 products instead of 4 for the 2 of the forward.
ATTENTION_BACKWARD = {"eager": 2.0, "sdpa": 2.5, "flash_attention_2": 2.5}


@dataclass(frozen=True)
class PhaseFlops:
    """One part of a step. `calls` are rows x model calls, `asked` the tokens that meet the LM head."""

    calls: int
    tokens: int
    head_tokens: int
    backbone: float  # operations in the matrices of the blocks, adapters included
    attention: float  # and between tokens
    head: float  # and in the LM head

    @property
    def operations(self) -> float:
        return self.backbone + self.attention + self.head


PHASES = ("rollout", "old_logps", "ref_logps", "update")


@dataclass(frozen=True)
class StepFlops:
    """One RL step with responses of full length and no row skipped: an upper bound."""

    rollout: PhaseFlops
    old_logps: PhaseFlops
    ref_logps: PhaseFlops
    update: PhaseFlops

    @property
    def phases(self) -> dict[str, PhaseFlops]:
        return {name: getattr(self, name) for name in PHASES}

    @property
    def operations(self) -> float:
        return sum(part.operations for part in self.phases.values())


def count_flops(recipe: Recipe, shape: NetworkShape, prompt: int) -> StepFlops:
    """Counts a step whose prompts have this many tokens (padding included)."""
    responses = full_length_rollouts(recipe, prompt, padded=False)
    views = mask_samples_of_step(recipe, responses)
    rows, total = len(responses), prompt + recipe.sampler.gen_length
    schedule = schedule_of(recipe)
    calls = rows * schedule.nfe
    rollout = forward_flops(shape, calls, total, rows * sum(candidates_per_call(recipe)))
    later = [v for v in views[1:] if v is not views[0]] if recipe.objective.uses_old_policy else []
    return StepFlops(
        rollout,
        logps_flops(shape, _distinct(later), total),
        logps_flops(shape, _distinct(views) if recipe.objective.beta > 0 else [], total, adapters=False),
        update_flops(recipe, shape, views, total),
    )


def forward_flops(shape: NetworkShape, calls: int, total: int, asked: int, adapters: bool = True) -> PhaseFlops:
    """Model calls on rows of `total` tokens of which `asked` in all meet the head, nothing kept for a backward pass."""
    tokens = calls * total
    numbers = shape.backbone + (shape.adapters if adapters else 0)
    spared = shape.position_wise + (shape.adapters_position_wise if adapters else 0)
    return PhaseFlops(
        calls,
        tokens,
        asked,
        float(OPERATIONS * (numbers * tokens - spared * (tokens - asked))),
        float(2 * OPERATIONS * shape.layers * shape.attention * total * tokens),  # scores, then the weighted values
        float(OPERATIONS * shape.head * asked),
    )


def logps_flops(shape: NetworkShape, views: Sequence[MaskSamples], total: int, adapters: bool = True) -> PhaseFlops:
    """Scoring without gradients."""
    calls, asked = _counts(views)
    return forward_flops(shape, calls, total, asked, adapters)


def update_flops(recipe: Recipe, shape: NetworkShape, views: Sequence[MaskSamples], total: int) -> PhaseFlops:
    """Forward and backward of the mu inner updates.

    The backward pass of a matrix takes one product for its input and, if it is trained, one for itself. Checkpointed
    blocks run forward twice, the last of them whole, and so does a trained head.
    """
    calls, asked = _counts(views)
    once = forward_flops(shape, calls, total, asked)
    full = shape.adapters == 0
    again = int(recipe.model.gradient_checkpointing)
    tokens = once.tokens
    spared = 0 if again else tokens - asked
    base = OPERATIONS * (shape.backbone * tokens - shape.position_wise * spared) * ((3 if full else 2) + again)
    adapters = OPERATIONS * (shape.adapters * tokens - shape.adapters_position_wise * spared) * (3 + again)
    return PhaseFlops(
        calls,
        tokens,
        asked,
        float(base + adapters),
        once.attention * (1 + again + ATTENTION_BACKWARD[recipe.model.attention]),
        once.head * (4 if full else 2),
    )


def _counts(views: Sequence[MaskSamples]) -> tuple[int, int]:
    return sum(int(v.needs_forward.sum()) for v in views), sum(int((v.loss_weights != 0).sum()) for v in views)


def _distinct(views: Sequence[MaskSamples]) -> list[MaskSamples]:
    """An estimator without noise repeats one view, and it is scored once."""
    return list({id(v): v for v in views}.values())
