"""JustGRPO's likelihood: each token given the earlier ones, with all later tokens masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from stipule.estimators.estimator import any_length, no_diagnostics, unchanged, weighted_sum
from stipule.estimators.mask_samples import make_mask_samples
from stipule.types import MaskSamples, Rollouts


@dataclass(frozen=True, kw_only=True)
class Autoregressive:
    """log p(x0_i | prompt, anchors, x0_j for j < i), one mask sample per token (JustGRPO).

    This is an exact likelihood of the model used from left to right, without noise. It is the likelihood of the sampled
    trajectory if the sampler also goes from left to right (`sampler.block_length=1`). It needs as many mask samples as
    the longest response has tokens.
    """

    kind: Literal["autoregressive"] = "autoregressive"

    depends_on_advantage: ClassVar[bool] = False
    repeats_masks: ClassVar[bool] = True
    check_length = any_length
    fit = unchanged
    combine = weighted_sum
    diagnostics = no_diagnostics

    def num_masks(self, gen_length: int, nfe: int) -> int:
        return gen_length

    def sample_masks(self, rollouts: Rollouts, num_iterations: int, generator: torch.Generator) -> list[MaskSamples]:
        """The same masks in every update: sample k has the k-th token of each row as its target."""
        loss_mask = rollouts.loss_mask
        token_index = loss_mask.long().cumsum(1) - 1
        sample_index = torch.arange(max(1, int(loss_mask.sum(1).amax())), device=loss_mask.device)[:, None, None]
        target = (token_index == sample_index) & loss_mask
        position = torch.arange(loss_mask.shape[1], device=loss_mask.device)
        first_masked = torch.where(target.any(2), target.long().argmax(2), loss_mask.shape[1])
        masked = (position >= first_masked[:, :, None]) & rollouts.sampled_mask
        return [make_mask_samples(rollouts, masked, target.float())] * num_iterations
