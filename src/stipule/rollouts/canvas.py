"""The canvas: the state x_t of all rows of a batch, from fully masked to finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.models.policy import Policy
from stipule.models.upload import upload
from stipule.rollouts.pruning import Anchors
from stipule.types import Prompts, Rollouts


@runtime_checkable
class RowsAtStep(Protocol):
    """Some rows of a canvas and the forward pass that each of them is at."""

    @property
    def index(self) -> Int[Tensor, " A"]: ...
    @property
    def step(self) -> Int[Tensor, " A"]: ...
    @property
    def num_tokens(self) -> Int[Tensor, " A"]: ...


@dataclass(frozen=True)
class Canvas:
    """Tokens so far, which are still masked, and when and with which confidence each was unmasked."""

    completion_ids: Int[Tensor, "B L"]
    masked: Bool[Tensor, "B L"]
    anchor_mask: Bool[Tensor, "B L"]  # True on S_fixed of eq. 5
    unmask_step: Int[Tensor, "B L"]
    confidence: Float[Tensor, "B L"]
    nfe: Int[Tensor, " B"]
    nfe_tokens: Int[Tensor, " B"]
    eos_id: int

    @staticmethod
    def with_anchors(policy: Policy, prompts: Prompts, anchors: Anchors | None, gen_length: int) -> Canvas:
        """Stage 1 (eq. 5): masks everywhere but on anchors."""
        rows, device = len(prompts.prompt_ids), policy.device
        completion_ids = torch.full((rows, gen_length), policy.mask_id, device=device)
        anchor_mask = torch.zeros_like(completion_ids, dtype=torch.bool)
        if anchors is not None:
            anchor_mask = upload(anchors.fixed_mask, device)
            completion_ids = torch.where(anchor_mask, upload(anchors.token_ids, device), completion_ids)
        return Canvas(
            completion_ids=completion_ids,
            masked=~anchor_mask,
            anchor_mask=anchor_mask,
            unmask_step=torch.where(anchor_mask, -1, 0),
            confidence=torch.zeros_like(completion_ids, dtype=torch.float32),
            nfe=torch.zeros(rows, dtype=torch.long, device=device),
            nfe_tokens=torch.zeros(rows, dtype=torch.long, device=device),
            eos_id=policy.eos_id,
        )

    def unmask(
        self,
        call: RowsAtStep,
        positions: Bool[Tensor, "A L"],
        tokens: Int[Tensor, "A L"],
        confidences: Float[Tensor, "A L"],
    ) -> None:
        """Writes the tokens of one forward pass at `positions`."""
        rows, step = call.index, call.step[:, None]
        self.completion_ids[rows] = torch.where(positions, tokens, self.completion_ids[rows])
        self.confidence[rows] = torch.where(positions, confidences, self.confidence[rows])
        self.unmask_step[rows] = torch.where(positions, step, self.unmask_step[rows])
        self.masked[rows] = self.masked[rows] & ~positions
        self.nfe[rows] += 1
        self.nfe_tokens[rows] += call.num_tokens

    def fill_after_eos(self, call: RowsAtStep, finished_columns: Bool[Tensor, "A L"]) -> Bool[Tensor, " A"]:
        """Fills the masks of rows that have an end-of-text token in their finished columns; which rows these are."""
        rows, step = call.index, call.step[:, None]
        is_eos = (self.completion_ids[rows] == self.eos_id) & finished_columns & ~self.masked[rows]
        ended = is_eos.any(1)
        rest = self.masked[rows] & ended[:, None]
        self.completion_ids[rows] = self.completion_ids[rows].masked_fill(rest, self.eos_id)
        self.unmask_step[rows] = torch.where(rest, step, self.unmask_step[rows])
        self.masked[rows] &= ~ended[:, None]
        return ended

    def rollouts(self, prompts: Prompts) -> Rollouts:
        """The finished rows."""
        is_eos = (self.completion_ids == self.eos_id).long()
        return Rollouts(
            prompt_ids=prompts.prompt_ids,
            prompt_mask=prompts.prompt_mask,
            completion_ids=self.completion_ids,
            sampled_mask=~self.anchor_mask,
            completion_mask=is_eos.cumsum(1) - is_eos == 0,
            unmask_step=self.unmask_step,
            confidence=self.confidence,
            nfe=self.nfe,
            nfe_tokens=self.nfe_tokens,
        )
