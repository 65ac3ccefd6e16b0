"""DiffuCoder's coupled likelihood: all tokens masked, a random mask, and its complement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from stipule.errors import RecipeError
from stipule.estimators.estimator import any_length, no_diagnostics, unchanged, weighted_sum
from stipule.estimators.mask_samples import bernoulli_masks, make_mask_samples
from stipule.types import MaskSamples, Rollouts


@dataclass(frozen=True, kw_only=True)
class Coupled:
    """Three samples that mask all tokens, a Bernoulli(t) set m, and the other tokens (Gong et al. 2025, coupled-GRPO).

    s [ log p(x0_i | all masked) + 1[i in m] log p(x0_i | m) / t + 1[i not in m] log p(x0_i | rest) / (1-t) ]

    with t ~ U(t_min, 1 - t_min). Each term in brackets has the mean of one log-probability, so s = 1/3 gives their
    mean. The published code has s = 1/2 (`match_published_code`): 3/2 of a log-probability, which raises every ratio to
    the power 3/2. Biased: t is restricted to an interval, and one sample of three is the one-step likelihood.
    """

    kind: Literal["coupled"] = "coupled"
    t_min: float = 0.2  # t ~ U(0.2, 0.8) in the published code
    match_published_code: bool = False  # the published scale 1/2 instead of 1/3

    depends_on_advantage: ClassVar[bool] = False
    repeats_masks: ClassVar[bool] = False
    check_length = any_length
    fit = unchanged
    combine = weighted_sum
    diagnostics = no_diagnostics

    def __post_init__(self) -> None:
        if not 0 < self.t_min <= 0.5:
            raise RecipeError(
                f"estimator.t_min is {self.t_min}; t is drawn from (t_min, 1 - t_min), so it must lie in (0, 0.5]; "
                "try 0.2"
            )

    def num_masks(self, gen_length: int, nfe: int) -> int:
        return 3

    def sample_masks(self, rollouts: Rollouts, num_iterations: int, generator: torch.Generator) -> list[MaskSamples]:
        """Three mask samples for each update."""
        return [self._sample_masks(rollouts, generator) for _ in range(num_iterations)]

    def _sample_masks(self, rollouts: Rollouts, generator: torch.Generator) -> MaskSamples:
        loss_mask = rollouts.loss_mask.cpu()
        t = self.t_min + (1 - 2 * self.t_min) * torch.rand(1, len(loss_mask), generator=generator)
        mask = bernoulli_masks(t, loss_mask, torch.rand(1, *loss_mask.shape, generator=generator))
        masked = torch.cat([loss_mask[None], mask, ~mask & loss_mask])
        weights = torch.cat([torch.ones_like(t), 1 / t, 1 / (1 - t)])[:, :, None]
        return make_mask_samples(rollouts, masked, weights * masked / (2 if self.match_published_code else 3))
