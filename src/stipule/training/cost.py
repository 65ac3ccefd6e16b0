"""Cost of an RL step, computed before any model is loaded: forward passes, and memory that is used all the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stipule.models.families import family_of
from stipule.rollouts.schedule import UnmaskSchedule, floor_fraction, masks_per_block, num_anchors, unmask_schedule
from stipule.training.settings import Recipe


@dataclass(frozen=True)
class StepCost:
    """Forward passes of one RL step, as rows x passes. Upper bounds if rows may end early or are skipped."""

    nfe_per_rollout: int  # forward passes to denoise one response
    unpruned: int  # the same without pruning: N
    rollout: int
    logps: int
    update: int

    @property
    def total(self) -> int:
        return self.rollout + self.logps + self.update


def nfe_per_rollout(recipe: Recipe) -> int:
    """Forward passes per response: an upper bound, for the fewest anchors that the recipe may place."""
    return schedule_of(recipe).nfe


def schedule_of(recipe: Recipe) -> UnmaskSchedule:
    """The schedule for the fewest anchors that the recipe may place, spread evenly over the blocks."""
    sampler, pruning = recipe.sampler, recipe.pruning
    masks = masks_per_block(
        sampler.gen_length, sampler.block_length, num_anchors(pruning.spatial.min_ratio, sampler.gen_length)
    )
    return unmask_schedule(
        masks,
        sampler.gen_length,
        sampler.steps,
        sampler.block_length,
        pruning.temporal.planned_cutoff,
        sampler.block_schedule,
    )


def is_upper_bound(recipe: Recipe) -> bool:
    """Whether rows may take fewer forward passes than planned, by their confidence or the anchor ratio."""
    pruning = recipe.pruning
    varies = pruning.temporal.kind != "constant" or pruning.spatial.schedule is not None
    return varies or recipe.sampler.confidence_threshold is not None


def step_cost(recipe: Recipe) -> StepCost:
    """Rollout, log-probabilities of the old and the reference policy, and updates (algorithms: 1.0)."""
    settings = recipe.training
    rows = settings.prompts_per_step * settings.num_generations
    nfe = nfe_per_rollout(recipe)
    masked_rows = recipe.estimator.num_masks(recipe.sampler.gen_length, nfe) * rows  # of one inner update
    old = settings.num_iterations - 1 if recipe.objective.uses_old_policy else 0
    ref = settings.num_iterations if recipe.objective.beta > 0 else 0
    return StepCost(
        nfe, recipe.sampler.steps, rows * nfe, masked_rows * (old + ref), masked_rows * settings.num_iterations
    )


def candidates_per_call(recipe: Recipe) -> tuple[int, ...]:
    """The most positions of a row that each forward pass computes logits for.

    With random remasking these are only the positions to unmask. Where confidence may finish a row, they are all
    remaining positions.
    """
    schedule = schedule_of(recipe)
    is_random = recipe.sampler.remasking == "random"
    candidates = schedule.num_transfer_tokens if is_random else schedule.num_candidates
    temporal = recipe.pruning.temporal
    if temporal.kind == "constant":
        return candidates
    window = floor_fraction(temporal.cutoff, recipe.sampler.gen_length)
    remaining = [sum(schedule.num_transfer_tokens[step:]) for step in range(schedule.nfe)]
    return tuple(left if left <= window else count for left, count in zip(remaining, candidates, strict=True))


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
