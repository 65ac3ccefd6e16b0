"""A clean and a noisy copy of a response in one sequence: all blocks of a block diffusion model in one forward pass.

A block model predicts each block from the *clean* earlier blocks. One copy cannot hold both, so a sequence holds the
clean prompt and response, and after them the noisy response (Arriola et al. 2025, BD3-LM, arXiv 2503.09573, section 4
and its figure of the mask). A noisy token attends to the noisy tokens of its own block and to the clean tokens of
earlier blocks, a clean token to the clean tokens of its own and of earlier blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from stipule.models.attention_mask import for_implementation


@dataclass(frozen=True)
class TwoCopies:
    """The input of a forward pass over both copies: T tokens of prompt and response, then W of the noisy copy."""

    input_ids: Int[Tensor, "N T+W"]
    attention_mask: Tensor  # N or 1 x 1 x T+W x T+W, in the form that the attention implementation takes
    position_ids: Int[Tensor, "N T+W"]
    position_mask: Bool[Tensor, "N T+W"]
    steps_to_left: Int[Tensor, "N T+W"]  # how far back a shifted model's prediction of each token is computed


def computed_length(prompt_length: int, gen_length: int, block_length: int | None) -> int:
    """Tokens of a forward pass over prompt and response, and of a block model (not None) over the noisy copy too."""
    total = prompt_length + gen_length
    return total if block_length is None else total + noisy_width(total, gen_length, block_length)


def noisy_width(total: int, gen_length: int, block_length: int) -> int:
    """W, the tokens of the noisy copy: the response, and the prompt tokens that may be in its first block."""
    return min(total, gen_length + block_length - 1)


def two_copies(
    model: PreTrainedModel,
    clean_ids: Int[Tensor, "N T"],
    noisy_ids: Int[Tensor, "N L"],
    real: Bool[Tensor, "N T"],
    position_mask: Bool[Tensor, "N L"],
    block_length: int,
) -> TwoCopies:
    """The clean copy of prompt and response, and the noisy copy of the response, whose masks are in `noisy_ids`.

    `real` is False on padding. The grid of blocks begins at the first real token, so the first block of the response
    may begin with tokens of the prompt. In the clean copy these attend to clean response tokens, which must not be
    seen. So the noisy copy begins block_length - 1 tokens early, with the same prompt tokens; those of other blocks,
    and padding, are seen by no response token.
    """
    length, total = noisy_ids.shape[1], clean_ids.shape[1]
    width = noisy_width(total, length, block_length)
    first = total - width  # the column of the clean copy that the noisy copy begins with
    position = (real.long().cumsum(1) - 1).clamp(min=0)
    block = torch.cat([position, position[:, first:]], 1) // block_length
    is_noisy = torch.arange(total + width, device=block.device) >= total
    queries, keys = block[:, :, None], block[:, None, :]
    from_noisy, to_noisy = is_noisy[:, None], is_noisy[None, :]
    visible = torch.where(
        from_noisy, torch.where(to_noisy, keys == queries, keys < queries), ~to_noisy & (keys <= queries)
    )
    visible &= torch.cat([real, real[:, first:]], 1)[:, None, :]
    visible |= torch.eye(total + width, dtype=torch.bool, device=block.device)  # padding, whose row would be empty
    # The left neighbour in the same block is noisy; in an earlier block it is clean, width + 1 tokens before this one.
    has_left = (real & real.roll(1, 1))[:, first:]
    if first == 0:
        has_left[:, 0] = False
    own_block = (position // block_length == (position // block_length).roll(1, 1))[:, first:]
    steps = torch.where(own_block, 1, width + 1) * has_left
    nothing = torch.zeros_like(clean_ids)
    return TwoCopies(
        input_ids=torch.cat([clean_ids, clean_ids[:, first : total - length], noisy_ids], 1),
        attention_mask=for_implementation(model, visible[:, None]),
        position_ids=torch.cat([position, position[:, first:]], 1),
        position_mask=torch.cat([nothing.bool(), nothing[:, first : total - length].bool(), position_mask], 1),
        steps_to_left=torch.cat([nothing, steps], 1),
    )
