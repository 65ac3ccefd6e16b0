"""Which rows of a batch share a forward pass: a queue of rows, early end, caches, and the progress of each row.

No row depends on the rows that it shares a forward pass with. The schedule is known on the host, which sends the part
of each forward pass in one copy. The host waits for the device after a completed block, because rows may end there, and
after each forward pass where confidence decides; after all others it does not (tests/test_pretend_device.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.models.policy import Policy
from stipule.models.sharding import any_rank_active, dummy_forward
from stipule.models.upload import upload
from stipule.rollouts.batch_progress import BatchProgress, NextCall
from stipule.rollouts.block_grid import block_grid, count_masks
from stipule.rollouts.block_kv_cache import BlockKVCache, CacheConfig
from stipule.rollouts.canvas import Canvas
from stipule.rollouts.finished_block_cache import FinishedBlockCache
from stipule.rollouts.pruning import TemporalPruning
from stipule.rollouts.schedule import BlockSchedule, UnmaskSchedule, num_blocks, unmask_schedule
from stipule.rollouts.unmasking import UnmaskingRule
from stipule.types import Prompts


@runtime_checkable
class BatchingOptions(Protocol):
    """The settings of a sampler that decide about batching."""

    @property
    def gen_length(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def block_length(self) -> int: ...
    @property
    def block_schedule(self) -> BlockSchedule: ...
    @property
    def remasking(self) -> str | UnmaskingRule: ...
    @property
    def stop_at_eos(self) -> bool: ...
    @property
    def confidence_threshold(self) -> float | None: ...
    @property
    def cache(self) -> CacheConfig | None: ...


@dataclass(frozen=True)
class Call:
    """One forward pass: its rows, and what it does in each. Host tensors first, then tensors on the device."""

    rows: Int[Tensor, " A"]
    plan: NextCall
    num_unmasked: Int[Tensor, " A"]  # before the forward pass
    num_candidates: int  # masked positions that are read in all rows together
    any_argmax: bool
    any_may_finish: bool
    index: Int[Tensor, " A"]  # `rows` on the device
    step: Int[Tensor, " A"]  # number of earlier forward passes of each row
    num_transfer_tokens: Int[Tensor, " A"]
    lookahead: Int[Tensor, " A"]
    num_tokens: Int[Tensor, " A"]  # that the forward pass computes for each row, without padding and repeated columns

    @property
    def is_argmax(self) -> Bool[Tensor, " A"]:
        return upload(self.plan.is_argmax, self.index.device)

    @property
    def may_finish(self) -> Bool[Tensor, " A"]:
        return upload(self.plan.may_finish, self.index.device)


class DenoisingQueue:
    """The rows that are not finished, in the order in which they are taken."""

    def __init__(
        self,
        options: BatchingOptions,
        policy: Policy,
        prompts: Prompts,
        canvas: Canvas,
        temporal: TemporalPruning,
        max_batch_size: int | None,
    ):
        self.options, self.policy, self.prompts, self.canvas = options, policy, prompts, canvas
        self.max_batch_size = max_batch_size
        self.finish_window = temporal.finish_window(options.gen_length)
        self.follows_schedule = options.confidence_threshold is None and self.finish_window == 0
        cutoff = temporal.planned_cutoff
        gen_length, block_length = options.gen_length, options.block_length

        def schedule_of(masks: tuple[int, ...]) -> UnmaskSchedule:
            return unmask_schedule(masks, gen_length, options.steps, block_length, cutoff, options.block_schedule)

        self.is_block_model = policy.block_length is not None
        grid = gen_length, block_length, self.is_block_model
        self.block_index = block_grid(prompts.prompt_mask, *grid)
        masks = count_masks(canvas.masked, self.block_index, num_blocks(*grid))
        counts = torch.cat([prompts.prompt_mask.sum(1, keepdim=True), masks], 1).cpu()
        self.prompt_length = counts[:, 0]
        self.progress = BatchProgress.from_masks(counts[:, 1:], schedule_of)
        rows, prompt_width = prompts.prompt_ids.shape
        self.num_unmasked = torch.zeros(rows, dtype=torch.long)
        self.num_calls = torch.zeros(rows, dtype=torch.long)
        self.cache: BlockKVCache | FinishedBlockCache | None = None
        width = prompt_width + gen_length
        if options.cache is not None and options.cache.is_exact:
            self.cache = FinishedBlockCache(
                policy, self.prompt_length, max_batch_size, prompt_width, gen_length, block_length
            )
        elif options.cache is not None:
            self.cache = BlockKVCache(options.cache, policy, rows, max_batch_size, width, gen_length, block_length)
        # Prompts of similar length share forward passes, so that little is padded.
        waiting = self.prompt_length.argsort(descending=True, stable=True)
        self.waiting = waiting[self.progress.num_masked[waiting] > 0]
        self._postponed, self._later = self.waiting[:0], self.waiting[:0]

    def calls(self) -> Iterator[Call]:
        """The forward passes until all rows are finished. Each must be followed by `advance`."""
        while any_rank_active(self.policy, len(self.waiting) > 0):
            if len(self.waiting):
                yield self._next_call()
            else:  # with sharded weights a forward pass is a collective: ranks without work run a dummy
                dummy_forward(self.policy)

    def _next_call(self) -> Call:
        rows = self.waiting[: self.max_batch_size]
        self._later, self._postponed = self.waiting[len(rows) :], rows[:0]
        num_calls = self.num_calls[rows] if self.follows_schedule else None
        plan = self.progress.next_call(
            rows, self.num_unmasked[rows], num_calls, self.finish_window, self.is_block_model
        )
        if self.cache is not None:
            shared = self.cache.can_share_call(rows, plan)
            rows, plan, self._postponed = rows[shared], plan[shared], rows[~shared]
        num_unmasked, step = self.num_unmasked[rows], self.num_calls[rows]
        if self.options.remasking == "random":
            num_candidates = int(plan.lookahead.sum())
        else:
            num_candidates = self.progress.num_candidates(rows, num_unmasked, plan.lookahead)
        numbers = torch.stack([rows, step, plan.num_transfer_tokens, plan.lookahead, self._num_tokens(rows, plan)])
        return Call(
            rows,
            plan,
            num_unmasked,
            num_candidates,
            bool(plan.is_argmax.any()),
            bool(plan.may_finish.any()),
            *upload(numbers, self.policy.device),
        )

    def _num_tokens(self, rows: Int[Tensor, " A"], plan: NextCall) -> Int[Tensor, " A"]:
        prompt_length = self.prompt_length[rows]
        if self.cache is not None:
            return self.cache.num_tokens(rows, plan, prompt_length)
        return prompt_length + (self._num_columns(rows, plan) if self.is_block_model else self.options.gen_length)

    def forward(self, call: Call, candidates: Bool[Tensor, "A L"]) -> Float[Tensor, "M V"]:
        """Logits of the candidate positions; only they are computed by the LM head."""
        longest = int(self.prompt_length[call.rows].max())
        has_padding = bool((self.prompt_length[call.rows] < longest).any())
        prompt_width = self.prompts.prompt_ids.shape[1]
        prompt_ids = self.prompts.prompt_ids[call.index, prompt_width - longest :]
        prompt_mask = self.prompts.prompt_mask[call.index, prompt_width - longest :]
        attention_mask = torch.cat([prompt_mask, torch.ones_like(candidates)], 1) if has_padding else None
        position_mask = torch.cat([torch.zeros_like(prompt_mask), candidates], 1)
        input_ids = torch.cat([prompt_ids, self.canvas.completion_ids[call.index]], 1)
        if self.is_block_model:  # later blocks are not seen
            total = longest + int(self._num_columns(call.rows, call.plan).max())
            input_ids, position_mask = input_ids[:, :total], position_mask[:, :total]
            attention_mask = None if attention_mask is None else attention_mask[:, :total]
        if self.cache is not None:
            return self.cache.logits(
                call.rows, call.plan, input_ids, attention_mask, position_mask, call.num_candidates
            )
        return self.policy.logits(input_ids, attention_mask, position_mask, call.num_candidates)

    def _num_columns(self, rows: Int[Tensor, " A"], plan: NextCall) -> Int[Tensor, " A"]:
        """The columns of the response up to the end of the block that each row is in."""
        block_length = self.options.block_length
        ends = (plan.block_index + 1) * block_length - self.prompt_length[rows] % block_length
        return ends.clamp(max=self.options.gen_length)

    def advance(self, call: Call, unmask: Bool[Tensor, "A L"]) -> None:
        """Counts what a forward pass has unmasked, and takes finished rows out of the queue."""
        rows = call.rows
        self.num_calls[rows] += 1
        known_beforehand = self.options.confidence_threshold is None and not call.any_may_finish
        self.num_unmasked[rows] += call.plan.num_transfer_tokens if known_beforehand else unmask.sum(1).cpu()
        finished = self.num_unmasked[rows] == self.progress.num_masked[rows]
        completed = self.progress.num_completed_blocks(rows, self.num_unmasked[rows])
        completed_before = self.progress.num_completed_blocks(rows, call.num_unmasked)
        if self.options.stop_at_eos and bool((completed > completed_before).any()):
            finished_columns = self.block_index[call.index] < upload(completed, call.index.device)[:, None]
            finished |= self.canvas.fill_after_eos(call, finished_columns).cpu()
        if self.cache is not None:
            self.cache.free_rows(rows[finished])
        self.waiting = torch.cat([self._postponed, rows[~finished], self._later])
