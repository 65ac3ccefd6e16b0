"""Cost of an RL step, computed before any model is loaded: forward passes, and memory that is used all the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Any

from stipule.models.families import family_of
from stipule.rollouts.schedule import (
    UnmaskSchedule,
    llada_transfer_schedule,
    masks_of_rows,
    masks_per_block,
    num_anchors,
    unmask_schedule,
)
from stipule.training.settings import Recipe

# Taken for every fraction that is known only after a run: the accuracy of problems, the fraction of groups without a
# correct response, and the fraction of anchors that come from a correct response.
UNKNOWN_FRACTION = 0.5


@dataclass(frozen=True)
class StepCost:
    """Forward passes of one RL step, as rows x passes, if no row ends early and every row has an advantage."""

    nfe_per_rollout: float  # forward passes to denoise one response, all attempts together
    unpruned: float  # the same without pruning: N, or its mean over the places where separate blocks begin
    rollout: int
    old_logps: int
    ref_logps: int
    update: int

    @property
    def logps(self) -> int:
        return self.old_logps + self.ref_logps

    @property
    def total(self) -> int:
        return self.rollout + self.logps + self.update


def step_cost(recipe: Recipe) -> StepCost:
    """The expected cost: the mean over the steps of the run, with round(gamma L) anchors wherever anchors are used.

    Anchors are spread evenly over the blocks, and no confidence finishes a row. Where separate blocks begin at the
    prompt, every remainder of its length by the block length counts alike. See `UNKNOWN_FRACTION` for the rest.
    """
    gen_length = recipe.sampler.gen_length
    return _step_cost(
        recipe,
        sum(fraction * expected_nfe(recipe, n) for n, fraction in sampled_anchors(recipe).items()),
        sum(
            fraction * recipe.estimator.num_masks(gen_length, ceil(expected_nfe(recipe, n)))
            for n, fraction in kept_anchors(recipe).items()
        ),
    )


def max_step_cost(recipe: Recipe) -> StepCost:
    """The upper bound: no response has an eligible token, so that no row has an anchor, and all groups are retried."""
    nfe = max_nfe(recipe)
    attempts = 2 if samples_twice(recipe) else 1
    return _step_cost(recipe, attempts * nfe, recipe.estimator.num_masks(recipe.sampler.gen_length, nfe))


def max_nfe(recipe: Recipe) -> int:
    """The most forward passes of one response.

    Where blocks carry on, fewer masks in a block never need more of them, so no placement of anchors needs more than
    none. A fixed block schedule has N, and the finish. Of separate blocks the one in which a cutoff of the whole
    response begins has one forward pass more, and anchors may move that cutoff into any block.
    """
    if recipe.sampler.block_schedule == "separate":
        masks, cutoff = _masks_of_rows(recipe), recipe.pruning.temporal.planned_cutoff
        if recipe.pruning.spatial.ratio > 0 and cutoff.scope == "global" and cutoff.fraction > 0:
            return max(unmask_schedule(m, *_sizes(recipe), blocks="separate").nfe for m in masks) + 1
        return max(schedule_of_masks(recipe, m).nfe for m in masks)
    if recipe.sampler.block_schedule == "fixed":
        return recipe.sampler.steps + (recipe.pruning.temporal.planned_cutoff.fraction > 0)
    return schedule_of(recipe).nfe


def min_nfe(recipe: Recipe, anchors: int = 0) -> int:
    """The fewest forward passes of a response of full length: the model is confident of every token.

    Parallel unmasking then needs one for each block that has masks, and a cutoff by confidence ends as early as it may
    (in each block, if blocks are separate).
    """
    sampler, temporal = recipe.sampler, recipe.pruning.temporal
    if sampler.block_schedule == "separate":
        return min(_min_nfe_of_separate_blocks(recipe, masks) for masks in _masks_of_rows(recipe, anchors))
    tokens, window = schedule_of(recipe, anchors).num_transfer_tokens, temporal.finish_window(sampler.gen_length)
    if sampler.confidence_threshold is not None:
        tokens = masks_per_block(sampler.gen_length, sampler.block_length, anchors)
        if temporal.planned_cutoff.scope == "global":
            window = max(window, temporal.planned_cutoff.num_masks(sampler.gen_length))
    left = list(accumulate(tokens, lambda masks, count: masks - count, initial=sum(tokens)))
    passes = [masks for masks, count in zip(left[:-1], tokens, strict=True) if count]
    return sum(masks > window for masks in passes) + any(masks <= window for masks in passes)


def _min_nfe_of_separate_blocks(recipe: Recipe, masks: tuple[int, ...]) -> int:
    if recipe.sampler.confidence_threshold is not None:
        return sum(count > 0 for count in masks)
    window, passes, left = recipe.pruning.temporal.finish_window(recipe.sampler.gen_length), 0, sum(masks)
    for tokens in schedule_of_masks(recipe, masks).num_transfer_tokens:
        if left <= window:
            break
        passes, left = passes + 1, left - tokens
    for count in reversed(masks):  # confidence finishes one block at a time
        if left > 0 and count > 0:
            passes, left = passes + 1, left - count
    return passes


def _step_cost(recipe: Recipe, nfe: float, num_masks: float) -> StepCost:
    """Rollout, log-probabilities of the old and the reference policy, and updates (algorithms: 1.0)."""
    settings = recipe.training
    rows = settings.prompts_per_step * settings.num_generations
    old = settings.num_iterations - 1 if recipe.objective.uses_old_policy else 0
    ref = settings.num_iterations if recipe.objective.beta > 0 else 0
    if recipe.estimator.repeats_masks:  # computed once, and those of the old policy by the first update
        old, ref = 0, min(ref, 1)
    return StepCost(
        nfe,
        _unpruned_nfe(recipe),
        round(rows * nfe),
        round(rows * num_masks * old),
        round(rows * num_masks * ref),
        round(rows * num_masks * settings.num_iterations),
    )


def sampled_anchors(recipe: Recipe) -> dict[int, float]:
    """How often a row is sampled with each number of anchors in a step: the expected mean over the run."""
    kept = kept_anchors(recipe)
    return _add(kept, {0: 1.0}, UNKNOWN_FRACTION) if samples_twice(recipe) else kept  # first attempts that failed


def kept_anchors(recipe: Recipe) -> dict[int, float]:
    """The fraction of rows whose response has each number of anchors: the expected mean over the run.

    All tokens count as eligible, which only a response says.
    """
    spatial, steps = recipe.pruning.spatial, recipe.training.steps
    ratios = [spatial.ratio_at(step, UNKNOWN_FRACTION) for step in range(steps if spatial.schedule else 1)]
    counts = Counter(num_anchors(ratio, recipe.sampler.gen_length, spatial.ratio_of) for ratio in ratios)
    fractions = {anchors: count / len(ratios) for anchors, count in counts.items()}
    for may_have_none in (spatial.only_correct and spatial.ratio > 0, samples_twice(recipe)):
        if may_have_none:
            fractions = _add({0: 1 - UNKNOWN_FRACTION}, fractions, UNKNOWN_FRACTION)
    return fractions


def samples_twice(recipe: Recipe) -> bool:
    """Whether groups without a correct response are sampled a second time, with anchors as hints."""
    spatial = recipe.pruning.spatial
    return spatial.when == "group_failed" and spatial.ratio > 0


def _add(fractions: Mapping[int, float], others: Mapping[int, float], weight: float) -> dict[int, float]:
    return {k: fractions.get(k, 0.0) + weight * others.get(k, 0.0) for k in dict.fromkeys([*fractions, *others])}


def expected_nfe(recipe: Recipe, anchors: int = 0) -> float:
    """The forward passes of a row with this many anchors, a mean over the places where its first block may begin."""
    return _mean([schedule_of_masks(recipe, masks).nfe for masks in _masks_of_rows(recipe, anchors)])


def _unpruned_nfe(recipe: Recipe) -> float:
    if recipe.sampler.block_schedule != "separate":
        return recipe.sampler.steps
    return _mean([unmask_schedule(m, *_sizes(recipe), blocks="separate").nfe for m in _masks_of_rows(recipe)])


def _mean(numbers: list[int]) -> float:
    mean = sum(numbers) / len(numbers)
    return int(mean) if mean.is_integer() else mean  # a whole number is printed as one


def _masks_of_rows(recipe: Recipe, anchors: int = 0) -> list[tuple[int, ...]]:
    sampler = recipe.sampler
    return masks_of_rows(sampler.gen_length, sampler.block_length, anchors, sampler.block_schedule)


def _sizes(recipe: Recipe) -> tuple[int, int, int]:
    return recipe.sampler.gen_length, recipe.sampler.steps, recipe.sampler.block_length


def schedule_of(recipe: Recipe, anchors: int = 0) -> UnmaskSchedule:
    """The schedule of a row with this many anchors, spread evenly over the blocks; without any it is the longest.

    Of separate blocks it is that of a row whose prompt ends with a block.
    """
    return schedule_of_masks(recipe, _masks_of_rows(recipe, anchors)[0])


def schedule_of_masks(recipe: Recipe, masks: tuple[int, ...]) -> UnmaskSchedule:
    """The schedule of a row whose blocks start with these numbers of masks."""
    cutoff = recipe.pruning.temporal.planned_cutoff
    return unmask_schedule(masks, *_sizes(recipe), cutoff, recipe.sampler.block_schedule)


def candidates_per_call(recipe: Recipe, anchors: int = 0) -> tuple[int, ...]:
    """The most positions of a row that each forward pass computes logits for.

    With random remasking these are only the positions to unmask. Where confidence may finish a row, they are all
    remaining positions.
    """
    schedule = schedule_of(recipe, anchors)
    is_random = recipe.sampler.remasking == "random"
    candidates = schedule.num_transfer_tokens if is_random else schedule.num_candidates
    temporal = recipe.pruning.temporal
    window = temporal.finish_window(recipe.sampler.gen_length)
    remaining = [sum(schedule.num_transfer_tokens[step:]) for step in range(schedule.nfe)]
    return tuple(left if left <= window else count for left, count in zip(remaining, candidates, strict=True))


def max_candidates(recipe: Recipe) -> int:
    """The most positions of a row that one forward pass computes logits for, wherever its anchors are.

    Anchors shift forward passes against blocks. One that unmasks k tokens may then read the last k - 1 masks of earlier
    blocks and all of the next one.
    """
    sampler, most = recipe.sampler, max(candidates_per_call(recipe))
    if sampler.remasking == "random" or recipe.pruning.spatial.ratio == 0:
        return most
    per_call = max(llada_transfer_schedule(sampler.gen_length, sampler.steps, sampler.block_length))
    return max(most, min(sampler.gen_length, sampler.block_length + per_call - 1))


@dataclass(frozen=True)
class StaticMemory:
    """Bytes that are used throughout training. Activations and logits are not included."""

    parameters: int  # number of parameters
    trained: int  # number of trained parameters
    weights: int
    training: int  # gradients, and AdamW's two moments in the weights' precision
    reference: int


def static_memory(recipe: Recipe, config_json: Mapping[str, Any]) -> StaticMemory:
    """Computed from the model's `config.json` alone."""
    import torch

    family = family_of(config_json)
    with torch.device("meta"):
        network = family.model_class(family.read_config(config_json))
    size = getattr(torch, recipe.model.dtype).itemsize
    parameters = sum(p.numel() for p in network.parameters())
    lora = recipe.model.lora
    if lora is None:
        trained, adapter_bytes = parameters, 0
    else:
        targets = family.lora_targets[lora.targets]
        trained = sum(
            lora.rank * sum(module.weight.shape)
            for name, module in network.named_modules()
            if name.rsplit(".", 1)[-1] in targets
        )
        adapter_bytes = 4 * trained  # adapters are kept in float32
    trained_size = 4 if lora else size
    reference = parameters * size if recipe.objective.beta > 0 and lora is None else 0
    return StaticMemory(parameters, trained, parameters * size + adapter_bytes, 3 * trained_size * trained, reference)
