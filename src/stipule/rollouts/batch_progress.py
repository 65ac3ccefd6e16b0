"""How far every row of a batch is, on the host: what its next forward pass unmasks, and how much it reads.

Blocks are filled in order, so the number of tokens that a row has unmasked is its whole state. In exact decoding that
number follows from the schedule, and is not read from the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stipule.rollouts.schedule import UnmaskSchedule


@dataclass(frozen=True)
class NextCall:
    """The next forward pass of some rows. All of it is known before it runs."""

    num_transfer_tokens: Int[Tensor, " A"]  # tokens to unmask, where confidence adds none
    is_argmax: Bool[Tensor, " A"]  # the one-step finish of stage 2b
    num_masked: Int[Tensor, " A"]  # masks left
    may_finish: Bool[Tensor, " A"]  # few enough masks left that confidence may finish the row
    lookahead: Int[Tensor, " A"]  # masks to read, from the left
    block_index: Int[Tensor, " A"]  # the first unfinished block
    inside_block: Bool[Tensor, " A"]  # whether the lookahead stays inside that block

    def __getitem__(self, rows: Bool[Tensor, " A"]) -> NextCall:
        return NextCall(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class BatchProgress:
    """The schedules of a batch as host tensors, so that no step loops over rows."""

    masks_per_block: Int[Tensor, "B blocks"]  # before the first forward pass
    unmasked_after: Int[Tensor, "B J"]  # tokens unmasked after each scheduled forward pass
    is_argmax: Bool[Tensor, "B J"]

    @staticmethod
    def from_masks(
        masks_per_block: Int[Tensor, "B blocks"], schedule_of: Callable[[tuple[int, ...]], UnmaskSchedule]
    ) -> BatchProgress:
        """The progress of rows that start with these masks. Equal rows share a schedule."""
        distinct, inverse = torch.unique(masks_per_block, dim=0, return_inverse=True)
        schedules = [schedule_of(tuple(row)) for row in distinct.tolist()]
        longest = max((schedule.nfe for schedule in schedules), default=0)

        def table(rows: list[tuple[int, ...]]) -> Tensor:
            padded = [row + (0,) * (longest - len(row)) for row in rows]
            return torch.tensor(padded, dtype=torch.long).view(len(rows), longest)[inverse]

        return BatchProgress(
            masks_per_block,
            table([schedule.num_transfer_tokens for schedule in schedules]).cumsum(1),
            table([schedule.argmax for schedule in schedules]).bool(),
        )

    @property
    def num_masked(self) -> Int[Tensor, " B"]:
        """Masks before the first forward pass."""
        return self.masks_per_block.sum(1)

    def next_call(
        self,
        rows: Int[Tensor, " A"],
        num_unmasked: Int[Tensor, " A"],
        num_calls: Int[Tensor, " A"] | None,
        finish_window: int,
        within_block: bool = False,
    ) -> NextCall:
        """The next forward pass of unfinished rows. Rows with at most `finish_window` masks read all of them.

        `within_block`: no forward pass reads beyond the first unfinished block.

        `num_calls` forward passes followed the schedule; None: confidence may have unmasked more than scheduled. A row
        then continues with the first forward pass of the schedule that unmasks something.
        """
        unmasked_after, cumulative_masks = self.unmasked_after[rows], self.masks_per_block[rows].cumsum(1)
        if num_calls is None:
            step = torch.searchsorted(unmasked_after, num_unmasked[:, None], right=True)
        else:
            step = num_calls[:, None]
        num_transfer_tokens = unmasked_after.gather(1, step)[:, 0] - num_unmasked
        num_masked = cumulative_masks[:, -1] - num_unmasked
        may_finish = num_masked <= finish_window
        lookahead = torch.where(may_finish, num_masked, num_transfer_tokens)
        block_index = (cumulative_masks <= num_unmasked[:, None]).sum(1)
        end_of_block = cumulative_masks.gather(1, block_index[:, None])[:, 0]
        if within_block:
            lookahead = lookahead.minimum(end_of_block - num_unmasked)
        inside_block = num_unmasked + lookahead <= end_of_block
        return NextCall(
            num_transfer_tokens, self.is_argmax[rows, step[:, 0]], num_masked, may_finish, lookahead, block_index,
            inside_block,
        )  # fmt: skip

    def num_candidates(
        self, rows: Int[Tensor, " A"], num_unmasked: Int[Tensor, " A"], lookahead: Int[Tensor, " A"]
    ) -> int:
        """Masked positions that forward passes with this lookahead read in all rows together: whole blocks of them."""
        masks = self.masks_per_block[rows]
        left = (masks.cumsum(1) - num_unmasked[:, None]).clamp(min=0).minimum(masks)
        return int((left * (left.cumsum(1) - left < lookahead[:, None])).sum())

    def num_completed_blocks(self, rows: Int[Tensor, " A"], num_unmasked: Int[Tensor, " A"]) -> Int[Tensor, " A"]:
        """How many blocks are full, from the left; none before the first forward pass."""
        full = (self.masks_per_block[rows].cumsum(1) <= num_unmasked[:, None]).sum(1)
        return torch.where(num_unmasked > 0, full, 0)
