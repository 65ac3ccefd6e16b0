"""Micro-batches of an update: which rows each of them has, and its weight in the mean over all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from stipule.estimators.estimator import Estimator
from stipule.models.sharding import is_sharded
from stipule.training.context import RunContext
from stipule.types import MaskSamples, Rollouts


@dataclass(frozen=True)
class MicroBatch:
    """Consecutive rows that are computed together. A weight of 0 means that the rows only keep ranks in step."""

    rows: slice
    weight: float


@dataclass(frozen=True)
class UpdateBatch:
    """What the mu inner updates of a step share."""

    estimator: Estimator
    rollouts: Rollouts
    advantages: Float[Tensor, " B"]
    mask_samples: Sequence[MaskSamples]  # one for each inner update
    micro_batches: Sequence[MicroBatch]


def micro_batches(rows: slice, micro_batch_size: int) -> list[slice]:
    """Consecutive slices of at most `micro_batch_size` rows."""
    starts = range(rows.start, rows.stop, micro_batch_size)
    return [slice(start, min(start + micro_batch_size, rows.stop)) for start in starts]


def local_micro_batches(run: RunContext, num_rows: int, total_rows: int) -> list[MicroBatch]:
    """This rank's micro-batches of `num_rows` rows with a loss, of `total_rows` in the step.

    A micro-batch's mean counts by its fraction of all rows. So the loss depends neither on micro-batches nor on rows
    that are left out nor on ranks.
    """
    local = run.processes.local_slice(num_rows)
    slices = micro_batches(local, run.recipe.training.micro_batch_size)
    batches = [MicroBatch(rows, (rows.stop - rows.start) / total_rows) for rows in slices]
    if is_sharded(run.policy):  # every rank makes every forward pass: ranks with fewer batches repeat a row
        batches += [MicroBatch(slice(0, 1), 0.0)] * (run.processes.all_reduce_max(len(batches)) - len(batches))
    return batches
