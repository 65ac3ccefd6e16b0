"""Which row of the batch uses which row of a cache of keys and values."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


class CacheSlots:
    """The rows of a cache, of which there are as many as rows that share a forward pass. On the host."""

    def __init__(self, rows: int, max_batch_size: int | None):
        self.count = min(rows, max_batch_size or rows)
        self._free = list(range(self.count))
        self._slot = torch.full((rows,), -1)

    def take(self, rows: Int[Tensor, " A"]) -> None:
        """Gives a slot to each of these rows that has none."""
        for row in rows[self._slot[rows] < 0].tolist():
            self._slot[row] = self._free.pop()

    def release(self, rows: Int[Tensor, " A"]) -> None:
        """Frees the slots of finished rows."""
        self._free += self._slot[rows][self._slot[rows] >= 0].tolist()
        self._slot[rows] = -1

    def __getitem__(self, rows: Int[Tensor, " A"]) -> Int[Tensor, " A"]:
        """The slot of each row; -1 where it has none."""
        return self._slot[rows]
