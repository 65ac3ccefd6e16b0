"""Which hidden positions a call looks at, and which of them it commits."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def within_reach(hidden: Bool[Tensor, "A L"], reach: Int[Tensor, " A"], block: int) -> Bool[Tensor, "A L"]:
    """The hidden positions of the first unfinished block, and of as many more as `reach` tokens of a row need."""
    left = hidden.unflatten(1, (-1, block)).sum(2)  # A x blocks
    before = left.cumsum(1) - left
    return hidden & (before < reach[:, None]).repeat_interleave(block, 1)


def best(
    priority: Float[Tensor, "A L"], window: Bool[Tensor, "A L"], block: int, quota: Int[Tensor, " A"]
) -> Bool[Tensor, "A L"]:
    """The `quota` positions of each row with the highest priority, earlier blocks first."""
    block_of = torch.arange(window.shape[1], device=window.device) // block
    # float64 holds a float32 priority and the block number without loss, so blocks never mix and ties stay ties.
    key = (priority.double() - 2.0 * block_of).masked_fill(~window, float("-inf"))
    rank = key.argsort(dim=1, descending=True, stable=True).argsort(1)
    return (rank < quota[:, None]) & window


def sure_rows(
    sure: Float[Tensor, " M"], row: Int[Tensor, " M"], asked: Bool[Tensor, " A"], at_least: float
) -> Bool[Tensor, " A"]:
    """Of the rows that are asked, those whose every position is at least this probable."""
    doubts = torch.zeros(len(asked), device=sure.device).index_add(0, row, (sure < at_least).float())
    return asked & (doubts == 0)
