"""The exact likelihood of the sampled trajectory: every token in the state in which it was unmasked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.estimators.estimator import any_length, no_diagnostics, unchanged, weighted_sum
from stipule.estimators.mask_samples import make_mask_samples
from stipule.types import MaskSamples, Rollouts


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """log p(x0_i | tokens unmasked before i's step), weight 1 (TraceRL, CJ-GRPO).

    `shrink` merges steps: the tokens of s consecutive steps are predicted together, from the state before the first of
    them. With s = 1 the sum is log prod_i p(x0_i | state), exactly what the sampler chose (at temperature 1; tokens of
    the argmax step count as if they had been sampled). It needs ceil(steps / s) mask samples and no noise, so its
    variance given the response is 0.
    """

    kind: Literal["trajectory"] = "trajectory"
    shrink: int = 1  # s, number of steps merged into one mask sample; TraceRL's code: 8

    depends_on_advantage: ClassVar[bool] = False
    repeats_masks: ClassVar[bool] = True
    check_length = any_length
    fit = unchanged
    combine = weighted_sum
    diagnostics = no_diagnostics

    def __post_init__(self) -> None:
        if self.shrink < 1:
            raise RecipeError(
                f"estimator.shrink is {self.shrink}; it is a number of steps and must be 1 or more; try 8"
            )

    def num_masks(self, gen_length: int, nfe: int) -> int:
        return -(-nfe // self.shrink)

    def sample_masks(self, rollouts: Rollouts, num_iterations: int, generator: torch.Generator) -> list[MaskSamples]:
        """The same masks in every update. Raises RecipeError if the rollouts hold no unmask steps."""
        if bool((rollouts.unmask_step < 0)[rollouts.loss_mask].any()):
            raise RecipeError(
                "estimator.kind is trajectory, but some rollouts hold no step in which their tokens were unmasked; "
                "use rollouts of a sampler, or another estimator"
            )
        sample_of_token = _sample_of_token(rollouts, self.shrink)
        sample_index = torch.arange(int(sample_of_token.max()) + 1, device=sample_of_token.device)[:, None, None]
        masked = (sample_of_token >= sample_index) & rollouts.sampled_mask
        weights = ((sample_of_token == sample_index) & rollouts.loss_mask).float()
        return [make_mask_samples(rollouts, masked, weights)] * num_iterations


def _sample_of_token(rollouts: Rollouts, shrink: int) -> Int[Tensor, "B L"]:
    """The mask sample that predicts each token: the rank of its step among the row's steps, divided by `shrink`."""
    unmask_step = rollouts.unmask_step.masked_fill(~rollouts.sampled_mask, -1)
    steps = torch.arange(int(unmask_step.max().clamp(min=0)) + 1, device=unmask_step.device)
    step_is_used = (unmask_step[:, :, None] == steps).any(1)  # B x steps
    rank = step_is_used.long().cumsum(1) - 1
    return rank.gather(1, unmask_step.clamp(min=0)) // shrink
