"""An estimator of your own: the mean of the one-step estimate (d1) and an ELBO estimate.

stipule train quickstart training.steps=2 --out runs/mine \
    estimator.kind=examples/custom_estimator.py:MeanOfOneStepAndElbo
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from stipule.estimators.elbo import Elbo
from stipule.estimators.estimator import any_length, no_diagnostics, unchanged, weighted_sum
from stipule.estimators.one_step import OneStep
from stipule.types import MaskSamples


@dataclass(frozen=True, kw_only=True)
class MeanOfOneStepAndElbo:
    num_samples: int = 2  # mask samples of the ELBO, beside the fully masked response
    depends_on_advantage: ClassVar[bool] = False
    repeats_masks: ClassVar[bool] = False
    check_length, fit, combine, diagnostics = any_length, unchanged, weighted_sum, no_diagnostics

    def num_masks(self, gen_length, nfe):
        return 1 + self.num_samples

    def sample_masks(self, rollouts, num_iterations, generator):
        both = [
            estimator.sample_masks(rollouts, num_iterations, generator)
            for estimator in (OneStep(p_mask_prompt=0.0), Elbo(num_samples=self.num_samples, masks="exact"))
        ]
        return [self.join(one_step, elbo) for one_step, elbo in zip(*both, strict=True)]

    def join(self, *masks):
        """The mask samples of both one after the other; their halved loss weights make the sum a mean."""
        names = ("masked", "loss_weights", "prompt_masked")
        masked, weights, prompt = (torch.cat([getattr(m, name) for m in masks]) for name in names)
        return MaskSamples(masked, weights / 2, prompt, masks[0].normalizer_mask)
