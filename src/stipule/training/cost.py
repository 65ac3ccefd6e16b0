"""What an RL step will cost, known before any model loads: model calls, and memory for what is held throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stipule.models.families import family_of
from stipule.rollouts.schedule import Plan, anchors_for, even_masks, plan, share_of
from stipule.training.settings import Recipe


@dataclass(frozen=True)
class StepCost:
    """Model calls of one RL step, as rows x calls; upper bounds where rows may end early or be skipped."""

    per_response: int  # calls to denoise one response
    unpruned: int  # the same with nothing pruned: N
    rollout: int
    score: int
    update: int

    @property
    def total(self) -> int:
        return self.rollout + self.score + self.update


def calls_per_response(recipe: Recipe) -> int:
    """The plan's calls for the fewest anchors that the recipe may place, spread evenly over the blocks: a bound."""
    return plan_of(recipe).forwards


def plan_of(recipe: Recipe) -> Plan:
    """What each call commits and looks at, for the fewest anchors that the recipe may place, evenly over the blocks."""
    sampler, pruning = recipe.sampler, recipe.pruning
    masks = even_masks(sampler.length, sampler.block, anchors_for(pruning.spatial.least, sampler.length))
    return plan(masks, sampler.length, sampler.steps, sampler.block, *pruning.temporal.planned)


def may_take_fewer(recipe: Recipe) -> bool:
    """Whether rows differ by what the model says, so that the planned calls are the most that are spent."""
    pruning = recipe.pruning
    varies = pruning.temporal.kind != "constant" or pruning.spatial.vary is not None
    return varies or recipe.sampler.parallel is not None


def step_cost(recipe: Recipe) -> StepCost:
    """Rollout, scoring of the old and the reference policy, and updates (algorithms: 1.0)."""
    settings = recipe.training
    rows = settings.problems * settings.group
    calls = calls_per_response(recipe)
    views = recipe.estimator.views(recipe.sampler.length, calls) * rows
    old = settings.updates - 1 if recipe.objective.compares else 0
    scored = old + (settings.updates if recipe.objective.kl > 0 else 0)
    return StepCost(calls, recipe.sampler.steps, rows * calls, views * scored, views * settings.updates)


def looked_at(recipe: Recipe) -> tuple[int, ...]:
    """Positions of a row that meet the LM head in each call, at most.

    In random order it is known which ones are committed. Where confidence may end a row, all that is left is looked at.
    """
    schedule = plan_of(recipe)
    looked = schedule.quotas if recipe.sampler.order == "random" else schedule.widths
    temporal = recipe.pruning.temporal
    if temporal.kind == "constant":
        return looked
    within = share_of(temporal.cutoff, recipe.sampler.length)
    left = [sum(schedule.quotas[call:]) for call in range(schedule.forwards)]
    return tuple(rest if rest <= within else width for rest, width in zip(left, looked, strict=True))


@dataclass(frozen=True)
class Held:
    """Bytes that are held throughout training; activations and logits come on top."""

    parameters: int
    trained: int
    weights: int
    training: int  # gradients, and AdamW's two moments in the weights' precision
    reference: int


def memory_held(recipe: Recipe, published: Mapping[str, Any]) -> Held:
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
    reference = parameters * size if recipe.objective.kl > 0 and lora is None else 0
    return Held(parameters, trained, parameters * size + adapter_bytes, 3 * each * trained, reference)
