"""A clean copy of a response and noisy ones in one sequence: all blocks of a block diffusion model in one forward pass.

A block model predicts each block from the *clean* earlier blocks. One copy cannot hold both, so a sequence holds the
clean prompt and response, and after them noisy copies of the response (Arriola et al. 2025, BD3-LM, arXiv 2503.09573,
section 4 and its figure of the mask, with one noisy copy). A noisy token attends to the tokens of its own block in its
own copy and to the clean tokens of earlier blocks, a clean token to the clean tokens of its own and of earlier blocks.
So all mask samples of a response share its clean copy, and the prompt is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from stipule.models.attention_mask import for_implementation


@dataclass(frozen=True)
class BlockCopies:
    """The input of a forward pass: T tokens of prompt and response, then W tokens of each of C noisy copies."""

    input_ids: Int[Tensor, "N T+C*W"]
    attention_mask: Tensor  # N or 1 x 1 x T+CW x T+CW, in the form that the attention implementation takes
    position_ids: Int[Tensor, "N T+C*W"]
    position_mask: Bool[Tensor, "N T+C*W"]
    steps_to_left: Int[Tensor, "N T+C*W"]  # how far back a shifted model's prediction of each token is computed


def computed_length(prompt_length: int, gen_length: int, block_length: int | None, copies: int = 1) -> int:
    """Tokens of a forward pass over prompt and response, and of a block model (not None) over its noisy copies too."""
    total = prompt_length + gen_length
    return total if block_length is None else total + copies * noisy_width(total, gen_length, block_length)


def noisy_width(total: int, gen_length: int, block_length: int) -> int:
    """W, the tokens of a noisy copy: the response, and the prompt tokens that may be in its first block."""
    return min(total, gen_length + block_length - 1)


def block_copies(
    model: PreTrainedModel,
    clean_ids: Int[Tensor, "N T"],
    noisy_ids: Int[Tensor, "N C L"],
    real: Bool[Tensor, "N T"],
    position_mask: Bool[Tensor, "N C L"],
    block_length: int,
) -> BlockCopies:
    """The clean copy of prompt and response, and the noisy copies of the response, whose masks are in `noisy_ids`.

    `real` is False on padding. The grid of blocks begins at the first real token, so the first block of the response
    may begin with tokens of the prompt. In the clean copy these attend to clean response tokens, which must not be
    seen. So a noisy copy begins block_length - 1 tokens early, with the same prompt tokens; those of other blocks,
    and padding, are seen by no response token.
    """
    (_, copies, length), total = noisy_ids.shape, clean_ids.shape[1]
    width = noisy_width(total, length, block_length)
    first = total - width  # the column of the clean copy that a noisy copy begins with

    def with_copies(clean: Tensor, noisy: Tensor) -> Tensor:
        return torch.cat([clean, noisy.repeat(1, copies)], 1)

    position = (real.long().cumsum(1) - 1).clamp(min=0)
    position_ids = with_copies(position, position[:, first:])
    block = position_ids // block_length
    copy = with_copies(torch.zeros_like(position[:1]), torch.zeros_like(position[:1, first:]))[0]  # 0: the clean one
    copy[total:] = torch.arange(1, copies + 1, device=block.device).repeat_interleave(width)
    queries, keys = block[:, :, None], block[:, None, :]
    to_clean, from_noisy = (copy == 0)[None, :], (copy > 0)[:, None]
    own_copy = copy[:, None] == copy[None, :]
    visible = torch.where(from_noisy, (own_copy & (keys == queries)) | (to_clean & (keys < queries)), keys <= queries)
    visible &= (to_clean | from_noisy) & with_copies(real, real[:, first:])[:, None, :]
    visible |= torch.eye(len(copy), dtype=torch.bool, device=block.device)  # padding, whose row would be empty
    # The left neighbour in the same block is noisy; in an earlier block it is the clean one.
    has_left = (real & real.roll(1, 1))[:, first:]
    if first == 0:
        has_left[:, 0] = False
    own_block = (position // block_length == (position // block_length).roll(1, 1))[:, first:].repeat(1, copies)
    steps = torch.where(own_block, 1, width * copy[total:] + 1) * has_left.repeat(1, copies)
    nothing = torch.zeros_like(clean_ids)
    prompt = clean_ids[:, None, first : total - length].expand(-1, copies, -1)
    return BlockCopies(
        input_ids=torch.cat([clean_ids, torch.cat([prompt, noisy_ids], 2).flatten(1)], 1),
        attention_mask=for_implementation(model, visible[:, None]),
        position_ids=position_ids,
        position_mask=torch.cat(
            [nothing.bool(), torch.cat([torch.zeros_like(prompt).bool(), position_mask], 2).flatten(1)], 1
        ),
        steps_to_left=torch.cat([nothing, steps], 1),
    )
