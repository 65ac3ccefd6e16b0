"""The variance of likelihood estimates, from numbers that a training step computes anyway."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.types import MaskSamples


def estimate_variance(logps: Sequence[Float[Tensor, "B L"]], masks: Sequence[MaskSamples]) -> Float[Tensor, " B"]:
    """Sample variance, per response, of the estimate per token over independently drawn masks.

    The mu updates of a step hold mu independent estimates under one policy. So this is unbiased for any estimator,
    whatever it does inside an update (strata, complements), and costs no forward pass: the old log-probabilities are
    there already. With mu = 2 it has one degree of freedom, so read only its mean over responses and steps.
    """
    estimates = [
        (logp * sample.normalizer_mask).sum(1) / sample.normalizer_mask.sum(1).clamp(min=1)
        for logp, sample in zip(logps, masks, strict=True)
    ]
    return torch.stack(estimates).var(0, correction=1)


def per_sample_variance(token_logps: Float[Tensor, "K B L"], masks: MaskSamples) -> Float[Tensor, " B"]:
    """Sample variance, per response, of the estimate from a single mask sample, over the K samples of one update.

    Unbiased if the samples are independent; with strata or complements it is the variance between them.
    """
    per_sample = (token_logps * masks.loss_weights).sum(2)
    estimates = len(token_logps) * per_sample / masks.normalizer_mask.sum(1).clamp(min=1)
    return estimates.var(0, correction=1)
