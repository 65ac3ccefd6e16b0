"""The score that the authors of STP train with: the mean log-probability of every token, masked or visible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from stipule.errors import RecipeError
from stipule.estimators.estimator import any_length, no_diagnostics, unchanged, weighted_sum
from stipule.estimators.mask_samples import exact_count_masks, make_mask_samples
from stipule.estimators.timestep_sampling import uniform_counts
from stipule.types import MaskSamples, Rollouts


@dataclass(frozen=True, kw_only=True)
class MeanLogProb:
    """score_i = 1/K sum_k log p(x0_i | x_k), at every position i of the response, masked in x_k or visible.

    This is not eq. 3: there is no weight 1/t, and a visible token counts as much as a masked one. The mean is that of
    log p(x0_i | x_k) over k ~ U{1..n} and a uniform k-subset of the n tokens up to and including the first end-of-text
    token. A network that copies its input has log-probabilities near 0 at visible positions. They lower the variance of
    the score, and they do not measure how probable the response is. Anchors are never masked, and all tokens after the
    end of the text are (except anchors). Source: the authors' public code (docs/decisions.md, "What the authors of STP
    run").
    """

    kind: Literal["mean_log_prob"] = "mean_log_prob"
    num_samples: int = 3  # K (table 8)
    # inside: anchors have a score, a term in the loss and in the KL, and count in the length, as in the authors' code
    anchors: Literal["inside", "outside"] = "inside"

    depends_on_advantage: ClassVar[bool] = False
    repeats_masks: ClassVar[bool] = False
    check_length = any_length
    fit = unchanged
    combine = weighted_sum
    diagnostics = no_diagnostics

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise RecipeError(
                f"estimator.num_samples is {self.num_samples}; it is the number of mask samples and must be 1 or more; "
                "try 3"
            )

    def num_masks(self, gen_length: int, nfe: int) -> int:
        return self.num_samples

    def sample_masks(self, rollouts: Rollouts, num_iterations: int, generator: torch.Generator) -> list[MaskSamples]:
        """K mask samples for each of the inner updates."""
        return [self._sample_masks(rollouts, generator) for _ in range(num_iterations)]

    def _sample_masks(self, rollouts: Rollouts, generator: torch.Generator) -> MaskSamples:
        text, sampled = rollouts.completion_mask.cpu(), rollouts.sampled_mask.cpu()
        shape = self.num_samples, *text.shape
        count = uniform_counts(torch.rand(shape[:2], generator=generator), 1, text.sum(1))
        masked = exact_count_masks(count, text, torch.rand(shape, generator=generator))
        masked = (masked | ~text) & sampled  # the loss weights below are not 0 on visible tokens
        normalizer_mask = text if self.anchors == "inside" else text & sampled
        weights = (normalizer_mask / self.num_samples).expand(shape)
        return make_mask_samples(rollouts, masked, weights, normalizer_mask=normalizer_mask)
