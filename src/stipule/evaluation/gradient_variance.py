"""How much the gradient of an update varies with the masks its estimator draws: what training feels of eq. 14."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.estimators.elbo import Elbo
from stipule.estimators.token_logps import estimate_logps
from stipule.models.masked_policy import MaskedPolicy
from stipule.types import MaskSamples, Rollouts


def surrogate_gradient(
    policy: MaskedPolicy, responses: Rollouts, views: MaskSamples, form: Elbo, advantage: Float[Tensor, " B"]
) -> Float[Tensor, " P"]:
    """The gradient, by all trainable parameters, of mean_i A_i B_i / n_i: eq. 4 where nothing has changed yet."""
    found = estimate_logps(policy, responses, views, form, advantage)
    worth = (found.sum(1) / views.normalizer_mask.sum(1).clamp(min=1) * advantage).mean()
    slopes = torch.autograd.grad(worth, list(policy.trainable_parameters().values()))
    return torch.cat([slope.flatten() for slope in slopes])


def gradient_variances(
    policy: MaskedPolicy,
    responses: Rollouts,
    form: Elbo,
    advantage: Float[Tensor, " B"],
    draws: int,
    generator: torch.Generator,
) -> Float[Tensor, " R"]:
    """Squared distance of each of R gradients from their mean, times R / (R - 1).

    Their mean is an unbiased estimate of the trace of the gradient's covariance over masks.
    """
    gradients = [
        surrogate_gradient(policy, responses, views, form, advantage)
        for views in form.sample_masks(responses, draws, generator)
    ]
    mean = torch.stack(gradients).mean(0)
    return torch.stack([(g - mean).square().sum() for g in gradients]).double() * draws / (draws - 1)
