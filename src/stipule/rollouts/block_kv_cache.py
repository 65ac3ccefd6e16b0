"""Forward passes that compute a part of the canvas and take keys and values of the rest from an earlier one.

As in Fast-dLLM (Wu et al. 2025): a block begins with a full forward pass; the following ones compute the block and what
comes after it (`prefix`), or the block only (`dual`). Here each row of a batch may be in a different block. The results
are approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.models.policy import Policy
from stipule.models.upload import upload
from stipule.rollouts.batch_progress import NextCall
from stipule.rollouts.cache_slots import CacheSlots
from stipule.rollouts.schedule import BlockSchedule


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What a forward pass after the first of a block takes from earlier ones, and how old that may become."""

    # prefix: all before the block; dual: all around it; finished_blocks: for block diffusion models, all before the
    # block, which is exact
    kind: Literal["prefix", "dual", "finished_blocks"] = "prefix"
    refresh: int = 0  # forward passes from one full one to the next; 0: only the first of each block is full

    def __post_init__(self) -> None:
        if self.refresh < 0 or self.refresh == 1:
            raise RecipeError(
                f"sampler.cache.refresh is {self.refresh}; it is the number of forward passes from one full one to the "
                "next: 2 or more, or 0 for one at each block's start; for full forward passes only leave sampler.cache "
                "out"
            )
        if self.is_exact and self.refresh:
            raise RecipeError(
                f"sampler.cache.refresh is {self.refresh} with kind finished_blocks, whose keys and values stay exact; "
                "leave sampler.cache.refresh out"
            )

    @property
    def is_exact(self) -> bool:
        """Whether rollouts are those without a cache."""
        return self.kind == "finished_blocks"


def check_cache(cache: CacheConfig | None, block_schedule: BlockSchedule) -> None:
    """Raises RecipeError for a cache that does not fit the kind of model that the block schedule is for."""
    if cache is not None and cache.is_exact != (block_schedule == "separate"):
        remedy = (
            "sampler.cache.kind=finished_blocks, whose rollouts are exact"
            if block_schedule == "separate"
            else "sampler.cache.kind=prefix or dual, or sampler.block_schedule=separate for a block diffusion model"
        )
        raise RecipeError(
            f"sampler.cache.kind is {cache.kind} with block_schedule {block_schedule}; finished_blocks is for block "
            f"diffusion models (block_schedule separate), prefix and dual are for all others; set {remedy}"
        )


class BlockKVCache:
    """Which rows of a batch must be computed in full, and which block of the others.

    A row is computed in full in the first forward pass of a block, `refresh` forward passes after the last full one,
    and where a forward pass reads beyond the block. That depends on the row only, so rows that need different things
    take turns.
    """

    def __init__(
        self,
        config: CacheConfig,
        policy: Policy,
        rows: int,
        max_batch_size: int | None,
        width: int,
        gen_length: int,
        block_length: int,
    ):
        self.config, self.policy, self.gen_length, self.block_length = config, policy, gen_length, block_length
        self._slots = CacheSlots(rows, max_batch_size)
        self.kv_cache = policy.new_kv_cache(self._slots.count, width)
        self._block = torch.full((rows,), -1)  # the block that the last full forward pass began; -1: none
        self._age = torch.zeros(rows, dtype=torch.long)  # forward passes since then

    def can_share_call(self, rows: Int[Tensor, " A"], call: NextCall) -> Bool[Tensor, " A"]:
        """The rows that can share the first row's forward pass; the first row is among them."""
        is_full = self._is_full(rows, call)
        same = is_full == is_full[0]
        if not bool(is_full[0]) and self.config.kind == "prefix":
            same &= call.block_index == call.block_index[0]  # the computed columns are equally many
        return same

    def _is_full(self, rows: Int[Tensor, " A"], call: NextCall) -> Bool[Tensor, " A"]:
        refresh = self.config.refresh
        is_old = (self._age[rows] >= refresh) if refresh else torch.zeros_like(call.inside_block)
        return (self._block[rows] != call.block_index) | ~call.inside_block | is_old

    def num_tokens(
        self, rows: Int[Tensor, " A"], call: NextCall, prompt_length: Int[Tensor, " A"]
    ) -> Int[Tensor, " A"]:
        """The tokens of each row that its next forward pass computes."""
        left_neighbour = int(self.kv_cache.shift_logits)
        if self.config.kind == "dual":
            part = torch.full_like(rows, self.block_length + left_neighbour)
        else:
            part = self.gen_length - call.block_index * self.block_length + left_neighbour
        return torch.where(self._is_full(rows, call), prompt_length + self.gen_length, part)

    def logits(
        self,
        rows: Int[Tensor, " A"],
        call: NextCall,
        input_ids: Int[Tensor, "A T"],
        attention_mask: Bool[Tensor, "A T"] | None,
        position_mask: Bool[Tensor, "A T"],
        num_positions: int,
    ) -> Float[Tensor, "M V"]:
        """Logits of the positions of `position_mask`. All rows must be able to share the forward pass."""
        columns = None
        if bool(self._is_full(rows, call)[0]):
            self._slots.take(rows)
            # A forward pass that reads beyond its block is not kept: the next block begins with a full one.
            self._block[rows] = torch.where(call.inside_block, call.block_index, -1)
            self._age[rows] = 1
        else:
            self._age[rows] += 1
            columns = upload(self._columns(call.block_index, input_ids.shape[1]), input_ids.device)
        slots = upload(self._slots[rows], input_ids.device)
        hidden_states = self.kv_cache.hidden_states(
            slots, input_ids, attention_mask, position_mask, num_positions, columns
        )
        return self.policy.lm_head(hidden_states)

    def _columns(self, block_index: Int[Tensor, " A"], total: int) -> Int[Tensor, "A W"]:
        """The columns of the canvas that are computed; of a shifted model also their left neighbour."""
        first = total - self.gen_length + block_index * self.block_length
        width = self.block_length if self.config.kind == "dual" else total - int(first[0])
        left_neighbour = int(self.kv_cache.shift_logits and total > self.gen_length)
        return first[:, None] + torch.arange(-left_neighbour, width)

    def free_rows(self, rows: Int[Tensor, " A"]) -> None:
        """Frees the slots of finished rows."""
        self._slots.release(rows)
