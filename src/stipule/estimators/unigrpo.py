"""UniGRPO's likelihood: one mask sample per update, with a mask ratio that rises to 1 over the mu updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from stipule.errors import RecipeError
from stipule.estimators.estimator import any_length, no_diagnostics, unchanged, weighted_sum
from stipule.estimators.mask_samples import bernoulli_masks, make_mask_samples
from stipule.types import MaskSamples, Rollouts


@dataclass(frozen=True, kw_only=True)
class UniGrpo:
    """1[i masked] log p(x0_i | x_t), without 1/t (Yang et al. 2025, MMaDA, alg. 1).

    Each response starts at its own t_0 ~ U(t_min, 1). Update j of mu masks each token with probability
    t_j = t_0 + j/(mu - 1) (1 - t_0), so the last update sees a fully masked response. The prompt is never masked, and
    the loss is a mean over the masked tokens (`normalizer_mask`). Biased: sum_i E[1[i masked] log p(x0_i | x_t)] is a
    part of the ELBO that gives all t the same weight.
    """

    kind: Literal["unigrpo"] = "unigrpo"
    t_min: float = 0.1  # smallest first mask ratio (IGPO's code: 30 of 256 steps)

    depends_on_advantage: ClassVar[bool] = False
    repeats_masks: ClassVar[bool] = False
    check_length = any_length
    fit = unchanged
    combine = weighted_sum
    diagnostics = no_diagnostics

    def __post_init__(self) -> None:
        if not 0 < self.t_min < 1:
            raise RecipeError(f"estimator.t_min is {self.t_min}; it is a mask ratio and must lie in (0, 1); try 0.1")

    def num_masks(self, gen_length: int, nfe: int) -> int:
        return 1

    def sample_masks(self, rollouts: Rollouts, num_iterations: int, generator: torch.Generator) -> list[MaskSamples]:
        """One mask sample for each update."""
        loss_mask = rollouts.loss_mask.cpu()
        first = self.t_min + (1 - self.t_min) * torch.rand(1, len(loss_mask), generator=generator)
        samples = []
        for iteration in range(num_iterations):
            t = first + (1 - first) * (iteration / max(1, num_iterations - 1))
            masked = bernoulli_masks(t, loss_mask, torch.rand(1, *loss_mask.shape, generator=generator))
            samples.append(make_mask_samples(rollouts, masked, masked.float(), normalizer_mask=masked[0]))
        return samples
