"""Micro-batches of an update: which rows each of them has, and its weight in the mean over everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.estimators.estimator import Estimator
from stipule.models.sharding import is_sharded
from stipule.training.context import RunContext
from stipule.types import MaskSamples, Rollouts


@dataclass(frozen=True)
class MicroBatch:
    """Consecutive rows that are computed together. `is_dummy`: only to keep ranks in step, they count nowhere."""

    rows: slice
    is_dummy: bool = False


@dataclass(frozen=True)
class UpdateBatch:
    """What the mu inner updates of a step share. Rows without advantage may have been left out of it."""

    estimator: Estimator
    rollouts: Rollouts
    advantages: Float[Tensor, " B"]
    mask_samples: Sequence[MaskSamples]  # one for each inner update
    micro_batches: Sequence[MicroBatch]
    total_rows: int  # rows of the step, those that were left out included
    total_tokens: Int[Tensor, ""]  # their tokens in `loss_mask`

    def loss_weight(self, micro_batch: MicroBatch, masks: MaskSamples, averages_tokens: bool) -> float | Tensor:
        """The weight of a micro-batch's mean in the loss of all rows: its fraction of their number, or of their tokens.

        So the loss depends neither on micro-batches nor on rows that are left out nor on ranks. Every rank holds the
        masks of all rows, so no numbers are exchanged. A row that was left out counts with its tokens, times the
        fraction of its tokens that the estimator averages over in the other rows (1 for all but UniGRPO).
        """
        rows = micro_batch.rows
        if micro_batch.is_dummy:
            return 0.0
        if not averages_tokens:
            return (rows.stop - rows.start) / self.total_rows
        left_out = self.total_tokens / self.rollouts.loss_mask.sum().clamp(min=1)
        return masks.normalizer_mask[rows].sum() / (masks.normalizer_mask.sum() * left_out).clamp(min=1)

    def metric_weight(self, micro_batch: MicroBatch, masks: MaskSamples) -> float | Tensor:
        """The weight of a micro-batch's metrics in their mean over all inner updates and all rows that have tokens."""
        if micro_batch.is_dummy:
            return 0.0
        return masks.normalizer_mask[micro_batch.rows].any(1).sum() / self._has_tokens.sum().clamp(min=1)

    @property
    def always_has_tokens(self) -> Bool[Tensor, " B"]:
        """The rows that have tokens in every inner update."""
        return self._has_tokens.all(0)

    @cached_property
    def _has_tokens(self) -> Bool[Tensor, "mu B"]:
        return torch.stack([masks.normalizer_mask.any(1) for masks in self.mask_samples])


def micro_batches(rows: slice, micro_batch_size: int) -> list[slice]:
    """Consecutive slices of at most `micro_batch_size` rows."""
    starts = range(rows.start, rows.stop, micro_batch_size)
    return [slice(start, min(start + micro_batch_size, rows.stop)) for start in starts]


def local_micro_batches(run: RunContext, num_rows: int) -> list[MicroBatch]:
    """This rank's micro-batches of `num_rows` rows with a loss."""
    local = run.processes.local_slice(num_rows)
    batches = [MicroBatch(rows) for rows in micro_batches(local, run.recipe.training.micro_batch_size)]
    if is_sharded(run.policy):  # every rank makes every forward pass: ranks with fewer batches repeat a row
        dummy = MicroBatch(slice(0, 1), is_dummy=True)
        batches += [dummy] * (run.processes.all_reduce_max(len(batches)) - len(batches))
    return batches
