"""Which masked positions a forward pass may unmask, and which of them it unmasks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def candidate_positions(
    masked: Bool[Tensor, "A L"], lookahead: Int[Tensor, " A"], block_index: Int[Tensor, "A L"]
) -> Bool[Tensor, "A L"]:
    """The masked positions of the first unfinished block, and of as many more blocks as `lookahead` tokens need."""
    masked_before = masked.long().cumsum(1) - masked.long()  # of each token, then of its block: that of its first token
    begins_block = torch.ones_like(masked)
    begins_block[:, 1:] = block_index[:, 1:] != block_index[:, :-1]
    masked_before = masked_before.masked_fill(~begins_block, 0).cummax(1).values
    return masked & (masked_before < lookahead[:, None])


def top_k_positions(
    priority: Float[Tensor, "A L"],
    candidates: Bool[Tensor, "A L"],
    block_index: Int[Tensor, "A L"],
    k: Int[Tensor, " A"],
) -> Bool[Tensor, "A L"]:
    """The k candidates of each row with the highest priority; earlier blocks come first."""
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
