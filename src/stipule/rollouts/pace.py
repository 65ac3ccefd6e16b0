"""How far every row of a batch is, on the host: what its next call must commit, and how much that call looks at.

Blocks are filled in order, so the number of tokens that a row has committed says all there is to know of its state. In
exact decoding that number follows from the plan alone, and no call waits for the device to learn it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stipule.rollouts.schedule import Plan


@dataclass(frozen=True)
class Turn:
    """What the next call of some rows does, all of it known before."""

    quota: Int[Tensor, " A"]  # tokens that the call commits, where confidence adds none
    argmax: Bool[Tensor, " A"]  # the one-step cut of stage 2b
    left: Int[Tensor, " A"]  # masks in all
    ending: Bool[Tensor, " A"]  # so few that confidence may end the row
    reach: Int[Tensor, " A"]  # masks that the call must look at, from the left
    block: Int[Tensor, " A"]  # the first that is unfinished
    within: Bool[Tensor, " A"]  # whether the reach stays inside it

    def __getitem__(self, rows: Bool[Tensor, " A"]) -> Turn:
        return Turn(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class Pace:
    """The plans of a batch as host tensors, so that no step loops over rows."""

    masks: Int[Tensor, "B blocks"]  # hidden positions of each block before the first call
    due: Int[Tensor, "B J"]  # tokens committed after each planned call
    argmax: Bool[Tensor, "B J"]

    @staticmethod
    def of(masks: Int[Tensor, "B blocks"], planned: Callable[[tuple[int, ...]], Plan]) -> Pace:
        """The pace of rows that start with these masks; equal rows share a plan."""
        distinct, which = torch.unique(masks, dim=0, return_inverse=True)
        plans = [planned(tuple(pattern)) for pattern in distinct.tolist()]
        longest = max((p.forwards for p in plans), default=0)

        def table(rows: list[tuple[int, ...]]) -> Tensor:
            filled = [row + (0,) * (longest - len(row)) for row in rows]
            return torch.tensor(filled, dtype=torch.long).view(len(rows), longest)[which]

        return Pace(masks, table([p.quotas for p in plans]).cumsum(1), table([p.argmax for p in plans]).bool())

    @property
    def total(self) -> Int[Tensor, " B"]:
        """Tokens that the calls commit in all."""
        return self.masks.sum(1)

    def turn(self, rows: Int[Tensor, " A"], committed: Int[Tensor, " A"], may_end: int) -> Turn:
        """The next call of unfinished rows; those with at most `may_end` masks left look at all of them."""
        due, through = self.due[rows], self.masks[rows].cumsum(1)
        call = torch.searchsorted(due, committed[:, None], right=True)
        quota, left = due.gather(1, call)[:, 0] - committed, through[:, -1] - committed
        ending = left <= may_end
        reach = torch.where(ending, left, quota)
        block = (through <= committed[:, None]).sum(1)
        within = committed + reach <= through.gather(1, block[:, None])[:, 0]
        return Turn(quota, self.argmax[rows, call[:, 0]], left, ending, reach, block, within)

    def width(self, rows: Int[Tensor, " A"], committed: Int[Tensor, " A"], reach: Int[Tensor, " A"]) -> int:
        """Hidden positions in all that calls which reach this many tokens far look at: whole blocks of them."""
        masks = self.masks[rows]
        left = (masks.cumsum(1) - committed[:, None]).clamp(min=0).minimum(masks)
        return int((left * (left.cumsum(1) - left < reach[:, None])).sum())

    def completed(self, rows: Int[Tensor, " A"], committed: Int[Tensor, " A"]) -> Int[Tensor, " A"]:
        """How many blocks are full, from the left; none before the first call."""
        full = (self.masks[rows].cumsum(1) <= committed[:, None]).sum(1)
        return torch.where(committed > 0, full, 0)
