"""Calls that compute a part of the canvas and take keys and values of the rest from an earlier call (approximate).

As in Fast-dLLM (Wu et al. 2025): a block begins with a full call; the calls after it compute the block and what follows
(`prefix`), or the block alone (`dual`). Here every row of a batch is in a block of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.models.memory import KeyValues, check_remembers
from stipule.models.policy import MaskedPolicy, Policy
from stipule.rollouts.pace import Turn


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What a call after the first of a block takes from earlier calls, and how old that may become."""

    kind: Literal["prefix", "dual"] = "prefix"  # what is taken: all before the block, or all around it
    refresh: int = 0  # calls from one full call to the next; 0: only the first of each block is full

    def __post_init__(self) -> None:
        if self.refresh < 0 or self.refresh == 1:
            raise RecipeError(
                f"sampler.cache.refresh is {self.refresh}; it is the number of calls from one full call to the next: 2 "
                "or more, or 0 for one at each block's start; for full calls only leave sampler.cache out"
            )


class Recall:
    """The memory of a batch: which rows must be computed in full, and which block of the others.

    A row is computed in full in the first call of a block, `refresh` calls after the last full one, and where a call
    reaches beyond the block. That depends on the row alone, so rows that need different things take turns.
    """

    def __init__(
        self, cache: Cache, policy: Policy, rows: int, at_once: int | None, width: int, length: int, block: int
    ):
        assert isinstance(policy, MaskedPolicy), "only a transformers network has keys and values to remember"
        check_remembers(policy.family)
        self.cache, self.policy, self.length, self.block = cache, policy, length, block
        places = min(rows, at_once or rows)
        self.memory = KeyValues(places, width)
        self._free = list(range(places))
        self._place = torch.full((rows,), -1)
        self._block = torch.full((rows,), -1)  # that the last full call began; -1: none that lasts
        self._age = torch.zeros(rows, dtype=torch.long)  # calls since then

    def alike(self, rows: Int[Tensor, " A"], turn: Turn) -> Bool[Tensor, " A"]:
        """The rows that can share the first row's call, itself among them."""
        full = self._full(rows, turn)
        same = full == full[0]
        if not bool(full[0]) and self.cache.kind == "prefix":
            same &= turn.block == turn.block[0]  # their parts are equally long
        return same

    def _full(self, rows: Int[Tensor, " A"], turn: Turn) -> Bool[Tensor, " A"]:
        old = (self._age[rows] >= self.cache.refresh) if self.cache.refresh else torch.zeros_like(turn.within)
        return (self._block[rows] != turn.block) | ~turn.within | old

    def logits(
        self,
        rows: Int[Tensor, " A"],
        turn: Turn,
        tokens: Int[Tensor, "A T"],
        attend: Bool[Tensor, "A T"] | None,
        asked: Bool[Tensor, "A T"],
        count: int,
    ) -> Float[Tensor, "M V"]:
        """Logits of the positions asked for; all rows must be `alike`."""
        columns = None
        if bool(self._full(rows, turn)[0]):
            for row in rows[self._place[rows] < 0].tolist():
                self._place[row] = self._free.pop()
            # A call that reaches beyond its block leaves nothing that lasts: the next block begins with a full call.
            self._block[rows] = torch.where(turn.within, turn.block, -1)
            self._age[rows] = 1
        else:
            self._age[rows] += 1
            columns = self._columns(turn.block, tokens.shape[1]).to(tokens.device)
        at = self._place[rows].to(tokens.device)
        states = self.memory.states(self.policy, at, tokens, attend, asked, count, columns)
        return self.policy.head(states)

    def _columns(self, block: Int[Tensor, " A"], total: int) -> Int[Tensor, "A W"]:
        """The columns of the canvas that are computed; under a shifted network their left neighbour as well."""
        first = total - self.length + block * self.block
        wide = self.block if self.cache.kind == "dual" else total - int(first[0])
        extra = int(self.policy.family.shift and total > self.length)
        return first[:, None] + torch.arange(-extra, wide)

    def forget(self, rows: Int[Tensor, " A"]) -> None:
        """Makes room where rows are finished."""
        self._free += self._place[rows][self._place[rows] >= 0].tolist()
        self._place[rows] = -1
