"""Cost of an RL step, computed before any model is loaded: forward passes, and memory that is used all the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from stipule.models.families import family_of
from stipule.rollouts.schedule import (
    UnmaskSchedule,
    llada_transfer_schedule,
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
    unpruned: int  # the same without pruning: N
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

    Anchors are spread evenly over the blocks, and no confidence finishes a row. See `UNKNOWN_FRACTION` for the rest.
    """
    gen_length = recipe.sampler.gen_length
    return _step_cost(
        recipe,
        sum(fraction * schedule_of(recipe, n).nfe for n, fraction in sampled_anchors(recipe).items()),
        sum(
            fraction * recipe.estimator.num_masks(gen_length, schedule_of(recipe, n).nfe)
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
    none. A fixed block schedule has N, and the finish.
    """
    if recipe.sampler.block_schedule == "fixed":
        return recipe.sampler.steps + (recipe.pruning.temporal.planned_cutoff.fraction > 0)
    return schedule_of(recipe).nfe


def min_nfe(recipe: Recipe, anchors: int = 0) -> int:
    """The fewest forward passes of a response of full length: the model is confident of every token.

    Parallel unmasking then needs one for each block that has masks, and a cutoff by confidence ends as early as it may.
    """
    sampler, temporal = recipe.sampler, recipe.pruning.temporal
    tokens, window = schedule_of(recipe, anchors).num_transfer_tokens, temporal.finish_window(sampler.gen_length)
    if sampler.confidence_threshold is not None:
        tokens = masks_per_block(sampler.gen_length, sampler.block_length, anchors)
        if temporal.planned_cutoff.scope == "global":
            window = max(window, temporal.planned_cutoff.num_masks(sampler.gen_length))
    left = list(accumulate(tokens, lambda masks, count: masks - count, initial=sum(tokens)))
    passes = [masks for masks, count in zip(left[:-1], tokens, strict=True) if count]
    return sum(masks > window for masks in passes) + any(masks <= window for masks in passes)


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
        recipe.sampler.steps,
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


def schedule_of(recipe: Recipe, anchors: int = 0) -> UnmaskSchedule:
    """The schedule of a row with this many anchors, spread evenly over the blocks; without any it is the longest."""
    return schedule_of_masks(recipe, masks_per_block(recipe.sampler.gen_length, recipe.sampler.block_length, anchors))


def schedule_of_masks(recipe: Recipe, masks: tuple[int, ...]) -> UnmaskSchedule:
    """The schedule of a row whose blocks start with these numbers of masks."""
    sampler, cutoff = recipe.sampler, recipe.pruning.temporal.planned_cutoff
    sizes = sampler.gen_length, sampler.steps, sampler.block_length
    return unmask_schedule(masks, *sizes, cutoff, sampler.block_schedule)


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
