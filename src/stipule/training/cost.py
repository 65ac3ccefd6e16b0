"""What an RL step will cost, known before any model loads: model calls, and memory for what is held throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stipule.models.families import family_of
from stipule.rollouts.schedule import UnmaskSchedule, floor_fraction, masks_per_block, num_anchors, unmask_schedule
from stipule.training.settings import Recipe


@dataclass(frozen=True)
class StepCost:
    """Model calls of one RL step, as rows x calls; upper bounds where rows may end early or be skipped."""

    nfe_per_rollout: int  # calls to denoise one response
    unpruned: int  # the same with nothing pruned: N
    rollout: int
    logps: int
    update: int

    @property
    def total(self) -> int:
        return self.rollout + self.logps + self.update


def nfe_per_rollout(recipe: Recipe) -> int:
    """The plan's calls for the fewest anchors that the recipe may place, spread evenly over the blocks: a bound."""
    return schedule_of(recipe).nfe


def schedule_of(recipe: Recipe) -> UnmaskSchedule:
    """What each call commits and looks at, for the fewest anchors that the recipe may place, evenly over the blocks."""
    sampler, pruning = recipe.sampler, recipe.pruning
    masks = masks_per_block(
        sampler.gen_length, sampler.block_length, num_anchors(pruning.spatial.min_ratio, sampler.gen_length)
    )
    return unmask_schedule(
        masks, sampler.gen_length, sampler.steps, sampler.block_length, *pruning.temporal.planned_cutoff
    )


def is_upper_bound(recipe: Recipe) -> bool:
    """Whether rows differ by what the model says, so that the planned calls are the most that are spent."""
    pruning = recipe.pruning
    varies = pruning.temporal.kind != "constant" or pruning.spatial.schedule is not None
    return varies or recipe.sampler.confidence_threshold is not None


def step_cost(recipe: Recipe) -> StepCost:
    """Rollout, scoring of the old and the reference policy, and updates (algorithms: 1.0)."""
    settings = recipe.training
    rows = settings.prompts_per_step * settings.num_generations
    calls = nfe_per_rollout(recipe)
    views = recipe.estimator.num_masks(recipe.sampler.gen_length, calls) * rows
    old = settings.num_iterations - 1 if recipe.objective.uses_old_policy else 0
    scored = old + (settings.num_iterations if recipe.objective.beta > 0 else 0)
    return StepCost(calls, recipe.sampler.steps, rows * calls, views * scored, views * settings.num_iterations)


def candidates_per_call(recipe: Recipe) -> tuple[int, ...]:
    """Positions of a row that meet the LM head in each call, at most.

    In random order it is known which ones are committed. Where confidence may end a row, all that is left is looked at.
    """
    schedule = schedule_of(recipe)
    looked = schedule.num_transfer_tokens if recipe.sampler.remasking == "random" else schedule.num_candidates
    temporal = recipe.pruning.temporal
    if temporal.kind == "constant":
        return looked
    within = floor_fraction(temporal.cutoff, recipe.sampler.gen_length)
    left = [sum(schedule.num_transfer_tokens[call:]) for call in range(schedule.nfe)]
    return tuple(rest if rest <= within else width for rest, width in zip(left, looked, strict=True))


@dataclass(frozen=True)
class StaticMemory:
    """Bytes that are held throughout training; activations and logits come on top."""

    parameters: int
    trained: int
    weights: int
    training: int  # gradients, and AdamW's two moments in the weights' precision
    reference: int


def static_memory(recipe: Recipe, published: Mapping[str, Any]) -> StaticMemory:
    """From the model's `config.json` alone."""
    import torch

    family = family_of(published)
    with torch.device("meta"):
        network = family.model_class(family.read_config(published))
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
    each = 4 if lora else size
    reference = parameters * size if recipe.objective.beta > 0 and lora is None else 0
    return StaticMemory(parameters, trained, parameters * size + adapter_bytes, 3 * each * trained, reference)
