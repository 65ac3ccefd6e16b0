"""Forward passes that rollouts did not need because their text ended early."""

from __future__ import annotations

from itertools import accumulate

from stipule.rollouts.block_grid import block_grid, count_masks, num_blocks
from stipule.training.cost import schedule_of_masks
from stipule.training.settings import Recipe
from stipule.types import Rollouts


def nfe_saved_by_eos(recipe: Recipe, rollouts: Rollouts) -> int:
    """The scheduled forward passes after the end, in all rows together.

    The masks that are left when a row ends early are filled with end-of-text tokens of confidence 0. What confidence
    has saved before the end is not counted.
    """
    filled = (rollouts.sampled_mask & (rollouts.confidence == 0)).sum(1).tolist()
    sampler = recipe.sampler
    grid = sampler.gen_length, sampler.block_length, sampler.block_schedule == "separate"
    block_index = block_grid(rollouts.prompt_mask, *grid)
    masks = count_masks(rollouts.sampled_mask, block_index, num_blocks(*grid)).tolist()
    saved = 0
    for row_masks, num_filled in zip(masks, filled, strict=True):
        if num_filled:
            unmasked_after = accumulate(schedule_of_masks(recipe, tuple(row_masks)).num_transfer_tokens)
            saved += sum(after > sum(row_masks) - num_filled for after in unmasked_after)
    return saved
