"""The grid of blocks: which block each token of a response is in."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.rollouts.schedule import BlockSchedule


def check_blocks(block_length: int, block_schedule: BlockSchedule, model_block_length: int | None) -> None:
    """Raises RecipeError unless the sampler's blocks are those of a block diffusion model (None: full attention)."""
    if model_block_length is None:
        if block_schedule == "separate":
            raise RecipeError(
                "sampler.block_schedule is separate, which is for block diffusion models, but this model attends to "
                "the whole text; set sampler.block_schedule=carry, or model.block_length if it is a block model"
            )
        return
    if block_length != model_block_length or block_schedule != "separate":
        raise RecipeError(
            f"sampler has block_length {block_length} and block_schedule {block_schedule}; the model is a block "
            f"diffusion model with blocks of {model_block_length} tokens, which are filled one after the other; set "
            f"sampler.block_length={model_block_length} and sampler.block_schedule=separate"
        )


def block_grid(
    prompt_mask: Bool[Tensor, "B P"], gen_length: int, block_length: int, begins_at_prompt: bool
) -> Int[Tensor, "B L"]:
    """The index of each response token's block; the first block that holds response tokens has index 0.

    The grid begins at the response or, as in SDAR's published code, at the first real token of the prompt. Then the
    first block has only the tokens that the prompt's last block has left, and the last block those that remain.
    """
    position = torch.arange(gen_length, device=prompt_mask.device).expand(len(prompt_mask), -1)
    if begins_at_prompt:
        position = position + prompt_mask.sum(1, keepdim=True) % block_length
    return position // block_length


def count_masks(masked: Bool[Tensor, "B L"], block_index: Int[Tensor, "B L"], blocks: int) -> Int[Tensor, "B blocks"]:
    """The masks of each row in each of the first `blocks` blocks."""
    in_block = block_index[:, :, None] == torch.arange(blocks, device=masked.device)
    return (in_block & masked[:, :, None]).sum(1)
