"""Attention masks of queries x keys, built without reading the mask of tokens on the host."""

from __future__ import annotations

import torch
from jaxtyping import Bool
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
    mask = attention_mask[:, None, None, :].expand(-1, 1, queries, -1)
    if implementation != "eager":
        return mask
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
