"""Keys and values of finished blocks: exact in a block diffusion model, where no token sees a later block.

The first forward pass of a row computes the prompt and the first block. The first one of each later block computes the
block before it once more, which is finished now, and the block itself; all others compute their block only. So a
finished block costs no forward pass of its own. SDAR's published loop (Cheng et al. 2025) spends one on each.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.models.policy import Policy
from stipule.models.upload import upload
from stipule.rollouts.batch_progress import NextCall
from stipule.rollouts.cache_slots import CacheSlots


class FinishedBlockCache:
    """Which columns of each row must be computed. The others are finished, and their keys and values are stored."""

    def __init__(
        self,
        policy: Policy,
        prompt_length: Int[Tensor, " B"],
        max_batch_size: int | None,
        prompt_width: int,
        gen_length: int,
        block_length: int,
    ):
        self.policy, self.prompt_length, self.prompt_width = policy, prompt_length, prompt_width
        self.gen_length, self.block_length = gen_length, block_length
        rows = len(prompt_length)
        self._slots = CacheSlots(rows, max_batch_size)
        self.kv_cache = policy.new_kv_cache(self._slots.count, prompt_width + gen_length)
        self._block = torch.full((rows,), -1)  # of the last forward pass; all before it are finished. -1: none yet

    def can_share_call(self, rows: Int[Tensor, " A"], call: NextCall) -> Bool[Tensor, " A"]:
        """The rows that can share the first row's forward pass: rows with a stored prompt, or those without."""
        is_new = self._block[rows] < 0
        return is_new == is_new[0]

    def num_tokens(
        self, rows: Int[Tensor, " A"], call: NextCall, prompt_length: Int[Tensor, " A"]
    ) -> Int[Tensor, " A"]:
        """The tokens of each row that its next forward pass must compute; it may repeat finished ones."""
        first, end = self._span(rows, call, prompt_length)
        return end - torch.where(self._block[rows] < 0, 0, first)

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
        longest = int(self.prompt_length[rows].max())
        columns = None
        if bool(self._block[rows[0]] < 0):
            self._slots.take(rows)
        else:
            columns = upload(self._columns(rows, call, longest), input_ids.device)
        self._block[rows] = call.block_index
        slots = upload(self._slots[rows], input_ids.device)
        start = self.prompt_width - longest  # prompts end at the same column of the cache
        hidden_states = self.kv_cache.hidden_states(
            slots, input_ids, attention_mask, position_mask, num_positions, columns, start
        )
        return self.policy.lm_head(hidden_states)

    def _columns(self, rows: Int[Tensor, " A"], call: NextCall, longest: int) -> Int[Tensor, "A W"]:
        """The columns that are computed: from the first one that is not finished to the end of the present block.

        All rows compute equally many. A row that needs fewer repeats finished columns, which changes nothing, or at the
        left edge computes masks of later blocks, which are not seen and are computed again when their block begins.
        """
        first, end = self._span(rows, call, torch.full_like(rows, longest))
        width = int((end - first).max())
        return (end - width).clamp(min=0)[:, None] + torch.arange(width)

    def _span(
        self, rows: Int[Tensor, " A"], call: NextCall, response: Int[Tensor, " A"]
    ) -> tuple[Int[Tensor, " A"], Int[Tensor, " A"]]:
        """The first column not yet finished, and the end of the present block. Responses begin at `response`."""
        offset = self.prompt_length[rows] % self.block_length
        first = (response + self._block[rows] * self.block_length - offset).clamp(min=0)
        if self.kv_cache.shift_logits:  # the left neighbour predicts the first token of the block
            first = (first - 1).clamp(min=0)
        return first, response + ((call.block_index + 1) * self.block_length - offset).clamp(max=self.gen_length)

    def free_rows(self, rows: Int[Tensor, " A"]) -> None:
        """Frees the slots of finished rows."""
        self._slots.release(rows)
