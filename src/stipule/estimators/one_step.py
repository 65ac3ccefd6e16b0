"""The one-step likelihood of Diffu-GRPO: every token predicted from a fully masked response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from stipule.errors import RecipeError
from stipule.estimators.estimator import any_length, no_diagnostics, unchanged, weighted_sum
from stipule.estimators.mask_samples import make_mask_samples
from stipule.types import MaskSamples, Rollouts


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """log p(x0_i | masked prompt, anchors), all other tokens masked: one forward pass (Zhao et al. 2025, d1).

    Each prompt token is masked with probability `p_mask_prompt`, newly drawn for each inner update. This is a
    regulariser: the mu updates see different inputs. The tokens after the end of the text are masked too, because they
    would show where the text ends, but they have no weight. Biased: it is the mean-field likelihood, not the ELBO.
    """

    kind: Literal["one_step"] = "one_step"
    p_mask_prompt: float = 0.15  # d1's p_mask_prompt; table 8 of STP: 0

    depends_on_advantage: ClassVar[bool] = False
    repeats_masks: ClassVar[bool] = False
    check_length = any_length
    fit = unchanged
    combine = weighted_sum
    diagnostics = no_diagnostics

    def __post_init__(self) -> None:
        if not 0 <= self.p_mask_prompt < 1:
            raise RecipeError(
                f"estimator.p_mask_prompt is {self.p_mask_prompt}; it is the probability that a prompt token is masked "
                "and must lie in [0, 1); try 0.15"
            )

    def num_masks(self, gen_length: int, nfe: int) -> int:
        return 1

    def sample_masks(self, rollouts: Rollouts, num_iterations: int, generator: torch.Generator) -> list[MaskSamples]:
        """Everything masked. Only the masks of the prompt differ between the updates."""
        prompt_mask = rollouts.prompt_mask.cpu()
        masked, weights = rollouts.sampled_mask[None], rollouts.loss_mask[None].float()
        return [
            make_mask_samples(
                rollouts,
                masked,
                weights,
                ((torch.rand(prompt_mask.shape, generator=generator) < self.p_mask_prompt) & prompt_mask)[None],
            )
            for _ in range(num_iterations)
        ]
