"""The tensors that packages hand to each other, with their shapes.

Letters of the whole project: B rollouts in a batch (rows of a group are adjacent), G generations per prompt, P prompt
length (left-padded), L generation length, K mask samples per rollout, V vocabulary size, N denoising steps, mu inner
updates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts, left-padded to a common length."""

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]  # True on real prompt tokens

    def repeat(self, num_generations: int) -> Prompts:
        """Each prompt `num_generations` times, copies adjacent."""
        return Prompts(
            self.prompt_ids.repeat_interleave(num_generations, 0),
            self.prompt_mask.repeat_interleave(num_generations, 0),
        )

    def __getitem__(self, rows: Any) -> Prompts:
        return Prompts(self.prompt_ids[rows], self.prompt_mask[rows])


@dataclass(frozen=True)
class Rollouts:
    """Finished responses to a batch of prompts. They hold no reward."""

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    completion_ids: Int[Tensor, "B L"]  # x0
    sampled_mask: Bool[Tensor, "B L"]  # e_i of eq. 5: True where the policy chose the token, False on anchors
    completion_mask: Bool[Tensor, "B L"]  # True up to and including the first end-of-text token
    unmask_step: Int[Tensor, "B L"]  # the forward pass (from 0) that unmasked each token; -1: anchor
    confidence: Float[Tensor, "B L"]  # probability of the token when it was unmasked; 0 on anchors and filled-up ends
    nfe: Int[Tensor, " B"]  # forward passes spent on each row
    nfe_tokens: Int[Tensor, " B"]  # tokens that these computed, without padding; with a cache fewer than prompt and L

    @property
    def loss_mask(self) -> Bool[Tensor, "B L"]:
        """The tokens of likelihoods and losses: chosen by the policy, and not after the end of the text."""
        return self.sampled_mask & self.completion_mask

    def __len__(self) -> int:
        return self.completion_ids.shape[0]

    def __getitem__(self, rows: Any) -> Rollouts:
        return self.map(lambda tensor: tensor[rows])

    @staticmethod
    def concatenate(batches: Sequence[Rollouts]) -> Rollouts:
        """The rows of several batches in order. Their prompts must have the same width."""
        return Rollouts(**{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(Rollouts)})

    def map(self, function: Callable[[Tensor], Tensor]) -> Rollouts:
        """The same rollouts with a function applied to every tensor."""
        return Rollouts(**{f.name: function(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class MaskSamples:
    """K masked copies of each rollout, and the loss weight of each token in each copy."""

    masked: Bool[Tensor, "K B L"]
    loss_weights: Float[
        Tensor, "K B L"
    ]  # of the token's log-probability; a masked token of weight 0 only withholds context
    prompt_masked: Bool[Tensor, "K B P"]  # all False unless the estimator masks prompts
    normalizer_mask: Bool[Tensor, "B L"]  # the tokens that a loss averages over: `loss_mask`, or fewer

    @property
    def needs_forward(self) -> Bool[Tensor, "K B"]:
        """Where a copy has any loss weight. Only these copies are computed."""
        return (self.loss_weights != 0).any(2)

    def __getitem__(self, rows: Any) -> MaskSamples:
        return MaskSamples(
            self.masked[:, rows], self.loss_weights[:, rows], self.prompt_masked[:, rows], self.normalizer_mask[rows]
        )


@dataclass(frozen=True)
class LossInputs:
    """What an objective reads: token log-probability estimates of three policies, and advantages."""

    logps: Float[Tensor, "B L"]  # of the policy that is trained, with gradients
    old_logps: Float[Tensor, "B L"]  # of the policy that sampled, under the same masks
    ref_logps: Float[Tensor, "B L"] | None  # of the reference policy; None where `beta` is 0
    advantages: Float[Tensor, " B"]
    normalizer_mask: Bool[Tensor, "B L"]


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and metrics to log (detached; keys are listed in docs/metrics.md)."""

    value: Float[Tensor, ""]
    metrics: dict[str, Tensor]
