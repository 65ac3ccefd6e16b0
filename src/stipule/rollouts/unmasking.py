"""Which masked positions a forward pass may unmask, and which of them it unmasks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def candidate_positions(
    masked: Bool[Tensor, "A L"], lookahead: Int[Tensor, " A"], block_length: int
) -> Bool[Tensor, "A L"]:
    """The masked positions of the first unfinished block, and of as many more blocks as `lookahead` tokens need."""
    masked_in_block = masked.unflatten(1, (-1, block_length)).sum(2)  # A x blocks
    masked_before = masked_in_block.cumsum(1) - masked_in_block
    return masked & (masked_before < lookahead[:, None]).repeat_interleave(block_length, 1)


def top_k_positions(
    priority: Float[Tensor, "A L"], candidates: Bool[Tensor, "A L"], block_length: int, k: Int[Tensor, " A"]
) -> Bool[Tensor, "A L"]:
    """The k candidates of each row with the highest priority; earlier blocks come first."""
    block_index = torch.arange(candidates.shape[1], device=candidates.device) // block_length
    # float64 holds a float32 priority and the block index without loss, so blocks never mix and ties stay ties.
    key = (priority.double() - 2.0 * block_index).masked_fill(~candidates, float("-inf"))
    rank = key.argsort(dim=1, descending=True, stable=True).argsort(1)
    return (rank < k[:, None]) & candidates


def rows_above_threshold(
    confidence: Float[Tensor, " M"], row: Int[Tensor, " M"], rows: Bool[Tensor, " A"], threshold: float
) -> Bool[Tensor, " A"]:
    """Of `rows`, those whose confidence reaches the threshold at every position."""
    below = torch.zeros(len(rows), device=confidence.device).index_add(0, row, (confidence < threshold).float())
    return rows & (below == 0)
