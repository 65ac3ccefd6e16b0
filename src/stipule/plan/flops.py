"""Counts what one RL step computes: forward passes, tokens and floating-point operations of each phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate

from stipule.estimators.token_logps import copies_per_sequence
from stipule.models.block_copies import computed_length
from stipule.plan.dummy_model import full_length_rollouts, mask_samples_of_step
from stipule.plan.shape import NetworkShape
from stipule.rollouts.schedule import masks_of_rows
from stipule.training.cost import (
    candidates_per_call,
    kept_anchors,
    sampled_anchors,
    schedule_of,
    schedule_of_masks,
)
from stipule.training.settings import Recipe
from stipule.types import MaskSamples

# Operations of one multiply-add.
OPERATIONS = 2
# Backward operations of attention for each forward operation. Fused attention computes queries x keys again in the
# backward pass, so it needs 5 matrix products for the 2 of the forward pass, instead of 4.
ATTENTION_BACKWARD = {"eager": 2.0, "sdpa": 2.5, "flash_attention_2": 2.5}


@dataclass(frozen=True)
class PhaseFlops:
    """One phase of a step."""

    calls: float  # rows x forward passes
    tokens: float
    head_tokens: float  # tokens for which the LM head is computed
    backbone: float  # operations in the matrices of the layers, adapters included
    attention: float  # operations between tokens
    head: float  # operations in the LM head
    adapters: float  # of `backbone`: operations in the LoRA matrices, which may be multiplied in another precision

    @property
    def operations(self) -> float:
        return self.backbone + self.attention + self.head


PHASES = ("rollout", "old_logps", "ref_logps", "update")


@dataclass(frozen=True)
class StepFlops:
    """One RL step with responses of full length and no row skipped."""

    rollout: PhaseFlops
    old_logps: PhaseFlops
    ref_logps: PhaseFlops
    update: PhaseFlops

    @property
    def phases(self) -> dict[str, PhaseFlops]:
        return {name: getattr(self, name) for name in PHASES}

    @property
    def operations(self) -> float:
        return sum(phase.operations for phase in self.phases.values())


def count_flops(recipe: Recipe, shape: NetworkShape, prompt_length: int) -> StepFlops:
    """The expected operations of a step whose prompts have `prompt_length` tokens (padding included).

    They are a mean over the numbers of anchors that a row may have (`training.cost.kept_anchors`).
    """
    rows = recipe.training.prompts_per_step * recipe.training.num_generations
    rollouts = [
        (fraction, _rollout_flops(recipe, shape, rows, prompt_length, anchors))
        for anchors, fraction in sampled_anchors(recipe).items()
    ]
    others = [
        (fraction, _policy_flops(recipe, shape, prompt_length, anchors))
        for anchors, fraction in kept_anchors(recipe).items()
    ]
    phases = ([(fraction, flops[phase]) for fraction, flops in others] for phase in PHASES[1:])
    return StepFlops(_mean(rollouts), *map(_mean, phases))


def _rollout_flops(recipe: Recipe, shape: NetworkShape, rows: int, prompt_length: int, anchors: int) -> PhaseFlops:
    if shape.block_length is not None:
        return _block_rollout_flops(recipe, shape, rows, prompt_length, anchors)
    head_tokens = rows * sum(candidates_per_call(recipe, anchors))
    row_length = prompt_length + recipe.sampler.gen_length
    return forward_flops(shape, rows * schedule_of(recipe, anchors).nfe, row_length, head_tokens)


def _block_rollout_flops(
    recipe: Recipe, shape: NetworkShape, rows: int, prompt_length: int, anchors: int
) -> PhaseFlops:
    """Of a block diffusion model, whose forward passes compute the tokens up to the end of their block.

    With the cache they compute their block only, the first of each block the one before it too.
    """
    sampler = recipe.sampler
    remainder = prompt_length % sampler.block_length
    masks = masks_of_rows(sampler.gen_length, sampler.block_length, anchors, "separate")[remainder]
    schedule = schedule_of_masks(recipe, masks)
    read = schedule.num_transfer_tokens if sampler.remasking == "random" else schedule.num_candidates
    ends = accumulate(masks)
    block, end, unmasked, passes, computed = 0, next(ends), 0, [], -1
    for tokens, candidates in zip(schedule.num_transfer_tokens, read, strict=True):
        while unmasked >= end:
            block, end = block + 1, next(ends)
        unmasked += tokens
        columns = min(sampler.gen_length, (block + 1) * sampler.block_length - remainder)
        keys = prompt_length + columns
        # The tokens of the blocks that are finished, and of those whose keys and values are stored.
        stored = prompt_length - remainder + computed * sampler.block_length if sampler.cache and computed >= 0 else 0
        passes.append((1.0, forward_flops(shape, rows, keys - stored, rows * candidates, keys=keys)))
        computed = block
    return _mean(passes)


def _policy_flops(recipe: Recipe, shape: NetworkShape, prompt_length: int, anchors: int) -> dict[str, PhaseFlops]:
    """The phases after the rollout, if every row has this many anchors."""
    rollouts = full_length_rollouts(recipe, prompt_length, padded=False, anchors=anchors)
    mask_samples = mask_samples_of_step(recipe, rollouts)
    copies = copies_per_sequence(shape.block_length, mask_samples[0])
    length = computed_length(prompt_length, recipe.sampler.gen_length, shape.block_length, copies)
    uses_old, uses_ref = recipe.objective.uses_old_policy, recipe.objective.beta > 0
    later = [masks for masks in mask_samples[1:] if masks is not mask_samples[0]] if uses_old else []
    return {
        "old_logps": logps_flops(shape, _distinct(later), length, copies),
        "ref_logps": logps_flops(shape, _distinct(mask_samples) if uses_ref else [], length, copies, adapters=False),
        "update": update_flops(recipe, shape, mask_samples, length, copies),
    }


def _mean(phases: Sequence[tuple[float, PhaseFlops]]) -> PhaseFlops:
    """The sum of phases that are each computed for this fraction of the rows."""
    return PhaseFlops(
        *(sum(fraction * getattr(phase, field.name) for fraction, phase in phases) for field in fields(PhaseFlops))
    )


def forward_flops(
    shape: NetworkShape,
    calls: int,
    row_length: int,
    head_tokens: int,
    adapters: bool = True,
    copies: int = 1,
    keys: int | None = None,
) -> PhaseFlops:
    """Forward passes of `calls` rows with `row_length` tokens each, without a backward pass.

    `head_tokens`: tokens of all rows together for which the LM head is computed. `copies`: rows that share these
    tokens. `keys`: what a token attends to, if a cache holds more than the computed ones.
    """
    tokens = calls // copies * row_length
    weights = shape.backbone + (shape.adapters if adapters else 0)
    position_wise = shape.position_wise + (shape.adapters_position_wise if adapters else 0)
    return PhaseFlops(
        calls,
        tokens,
        head_tokens,
        float(OPERATIONS * (weights * tokens - position_wise * (tokens - head_tokens))),
        # queries x keys, then x values
        float(2 * OPERATIONS * shape.layers * shape.attention * (keys or row_length) * tokens),
        float(OPERATIONS * shape.head * head_tokens),
        float(
            OPERATIONS * (shape.adapters * tokens - shape.adapters_position_wise * (tokens - head_tokens)) * adapters
        ),
    )


def logps_flops(
    shape: NetworkShape, mask_samples: Sequence[MaskSamples], length: int, copies: int, adapters: bool = True
) -> PhaseFlops:
    """Token log-probabilities without gradients, in sequences of this length that hold `copies` mask samples."""
    calls, head_tokens = _calls_and_head_tokens(mask_samples)
    return forward_flops(shape, calls, length, head_tokens, adapters, copies)


def update_flops(
    recipe: Recipe, shape: NetworkShape, mask_samples: Sequence[MaskSamples], length: int, copies: int
) -> PhaseFlops:
    """Forward and backward passes of the mu inner updates.

    The backward pass of a matrix needs one product for the gradient of its input and, if it is trained, one for its
    own. Layers with checkpointing run forward twice (the last of them for all tokens), and so does a trained LM head.
    """
    calls, head_tokens = _calls_and_head_tokens(mask_samples)
    forward = forward_flops(shape, calls, length, head_tokens, copies=copies)
    full_fine_tuning = shape.adapters == 0
    recomputed = int(recipe.model.gradient_checkpointing)
    tokens = forward.tokens
    skipped = 0 if recomputed else tokens - head_tokens  # tokens that the last layer's position-wise matrices skip
    base_products = (3 if full_fine_tuning else 2) + recomputed
    base = OPERATIONS * (shape.backbone * tokens - shape.position_wise * skipped) * base_products
    adapters = OPERATIONS * (shape.adapters * tokens - shape.adapters_position_wise * skipped) * (3 + recomputed)
    return PhaseFlops(
        calls,
        tokens,
        head_tokens,
        float(base + adapters),
        forward.attention * (1 + recomputed + ATTENTION_BACKWARD[recipe.model.attention]),
        forward.head * (4 if full_fine_tuning else 2),
        float(adapters),
    )


def _calls_and_head_tokens(mask_samples: Sequence[MaskSamples]) -> tuple[int, int]:
    calls = sum(int(masks.needs_forward.sum()) for masks in mask_samples)
    return calls, sum(int((masks.loss_weights != 0).sum()) for masks in mask_samples)


def _distinct(mask_samples: Sequence[MaskSamples]) -> list[MaskSamples]:
    """Without repetitions. An estimator without noise repeats one object, which is computed once."""
    return list({id(masks): masks for masks in mask_samples}.values())
