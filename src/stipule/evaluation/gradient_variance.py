"""Measures the variance of the gradient over masks: the effect of eq. 14 on training."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.estimators.elbo import Elbo
from stipule.estimators.token_logps import estimate_logps
from stipule.models.masked_policy import MaskedPolicy
from stipule.types import MaskSamples, Rollouts


def surrogate_gradient(
    policy: MaskedPolicy, rollouts: Rollouts, masks: MaskSamples, estimator: Elbo, advantages: Float[Tensor, " B"]
) -> Float[Tensor, " P"]:
    """The gradient of mean_i A_i B_i / n_i by all trainable parameters: eq. 4 before the first update."""
    logps = estimate_logps(policy, rollouts, masks, estimator, advantages)
    surrogate = (logps.sum(1) / masks.normalizer_mask.sum(1).clamp(min=1) * advantages).mean()
    gradients = torch.autograd.grad(surrogate, list(policy.trainable_parameters().values()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def gradient_variances(
    policy: MaskedPolicy,
    rollouts: Rollouts,
    estimator: Elbo,
    advantages: Float[Tensor, " B"],
    draws: int,
    generator: torch.Generator,
) -> Float[Tensor, " R"]:
    """Squared distance of each of R = `draws` gradients from their mean, times R / (R - 1).

    The mean of these values is an unbiased estimate of the trace of the gradient's covariance over masks.
    """
    gradients = [
        surrogate_gradient(policy, rollouts, masks, estimator, advantages)
        for masks in estimator.sample_masks(rollouts, draws, generator)
    ]
    mean = torch.stack(gradients).mean(0)
    return torch.stack([(g - mean).square().sum() for g in gradients]).double() * draws / (draws - 1)
