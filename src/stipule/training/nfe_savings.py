"""Forward passes that the rollouts of a step did not need: by anchors, by the cutoff, and by early ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stipule.rollouts.block_grid import block_grid, count_masks
from stipule.rollouts.pruning import Pruning
from stipule.rollouts.schedule import num_blocks
from stipule.training.cost import schedule_of_masks
from stipule.training.settings import Recipe
from stipule.types import Rollouts


def nfe_metrics(recipe: Recipe, rollouts: Rollouts) -> dict[str, float]:
    """Forward passes of a response by the sampler's schedule, step by step as pruning is added; means over the rows.

    What confidence saves is in no schedule: it is the difference to the forward passes that were spent.
    """
    every_token = _masks_per_block(recipe, rollouts, torch.ones_like(rollouts.sampled_mask))
    without_anchors = _masks_per_block(recipe, rollouts, rollouts.sampled_mask)
    unpruned = replace(recipe, pruning=Pruning())
    totals = {
        "response/nfe_unpruned": _scheduled_nfe(unpruned, every_token),
        "response/nfe_with_anchors": _scheduled_nfe(unpruned, without_anchors),
        "response/nfe_with_cutoff": _scheduled_nfe(recipe, without_anchors),
        "response/nfe_saved_by_eos": nfe_saved_by_eos(recipe, rollouts),
    }
    return {name: total / len(rollouts) for name, total in totals.items()}


def nfe_saved_by_eos(recipe: Recipe, rollouts: Rollouts) -> int:
    """The scheduled forward passes after the end, in all rows together.

    The masks that are left when a row ends early are filled with end-of-text tokens of confidence 0. What confidence
    has saved before the end is not counted.
    """
    filled = (rollouts.sampled_mask & (rollouts.confidence == 0)).sum(1).tolist()
    masks = _masks_per_block(recipe, rollouts, rollouts.sampled_mask).tolist()
    saved = 0
    for row_masks, num_filled in zip(masks, filled, strict=True):
        if num_filled:
            unmasked_after = accumulate(schedule_of_masks(recipe, tuple(row_masks)).num_transfer_tokens)
            saved += sum(after > sum(row_masks) - num_filled for after in unmasked_after)
    return saved


def _masks_per_block(recipe: Recipe, rollouts: Rollouts, masked: Bool[Tensor, "B L"]) -> Int[Tensor, "B blocks"]:
    sampler = recipe.sampler
    grid = sampler.gen_length, sampler.block_length, sampler.block_schedule == "separate"
    return count_masks(masked, block_grid(rollouts.prompt_mask, *grid), num_blocks(*grid))


def _scheduled_nfe(recipe: Recipe, masks: Int[Tensor, "B blocks"]) -> int:
    """The scheduled forward passes of all rows together. Equal rows share a schedule."""
    rows = Counter(tuple(row) for row in masks.tolist())
    return sum(count * schedule_of_masks(recipe, row_masks).nfe for row_masks, count in rows.items())
