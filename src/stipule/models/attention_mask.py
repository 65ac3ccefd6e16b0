"""Attention masks of queries x keys, built without reading the mask of tokens on the host."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel


def full_attention_mask(model: PreTrainedModel, attention_mask: Bool[Tensor, "N T"], queries: int) -> Tensor:
    """The same mask for each of the queries, N x 1 x queries x T: booleans for sdpa, numbers to add for eager.

    transformers would build it, too, but first read the mask on the host, to leave it out where nothing is masked, and
    so wait for a GPU in every forward pass. Every layer gets this mask, so the model must have no sliding window. Flash
    attention needs the mask of tokens, which it gets back unchanged.
    """
    implementation = model.config._attn_implementation
    if "flash" in str(implementation):
        return attention_mask
    return for_implementation(model, attention_mask[:, None, None, :].expand(-1, 1, queries, -1))


def block_causal_mask(
    model: PreTrainedModel,
    attention_mask: Bool[Tensor, "N T"] | None,
    position_ids: Int[Tensor, "N T"],
    block_length: int,
    columns: Int[Tensor, "N W"] | None = None,
) -> Tensor:
    """Each token attends to the real tokens of its own block and of earlier blocks, N x 1 x queries x T.

    The queries are all tokens, or those of `columns`. `position_ids` count real tokens from 0, so padding does not move
    the grid of blocks. Padding has position 0, so it attends to real tokens too, and no row of the mask is empty.
    """
    block = position_ids // block_length
    query_block = block if columns is None else block.expand(len(columns), -1).gather(1, columns)
    mask = block[:, None, :] <= query_block[:, :, None]  # N x queries x keys
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, :]
    return for_implementation(model, mask[:, None])


def for_implementation(model: PreTrainedModel, mask: Bool[Tensor, "N 1 Q T"]) -> Tensor:
    """Booleans for sdpa; for eager numbers that are added to the attention scores."""
    if model.config._attn_implementation != "eager":
        return mask
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
