"""The terms of a loss: importance ratio, clipped surrogate, KL estimate, and the aggregation to one number."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]
# sequence: eq. 1. token: the published code of d1, SPG and DiffuCoder. sum: wd1.
LossAggregation = Literal["sequence", "token", "sum"]


def token_ratio(logps: Float[Tensor, "B L"], old_logps: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """rho = exp(B_new - B_old) of the token-wise ELBO (eq. 4). Exactly 1 where the policy has not changed."""
    return (logps - old_logps).exp()


def sequence_ratio(
    logps: Float[Tensor, "B L"], old_logps: Float[Tensor, "B L"], normalizer_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, " B"]:
    """rho = exp((B_new - B_old) / |o|) of the summed ELBO: the geometric mean of the token ratios (GSPO, ESPO)."""
    difference = ((logps - old_logps) * normalizer_mask).sum(1)
    return (difference / normalizer_mask.sum(1).clamp(min=1)).exp()


def clipped_surrogate(
    ratio: Float[Tensor, " *S"], advantages: Float[Tensor, " *S"], epsilon: float, epsilon_high: float
) -> Float[Tensor, " *S"]:
    """min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) of eq. 1. DAPO has a higher epsilon_high than epsilon."""
    return (ratio * advantages).minimum(ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantages)


def clip_mask(
    ratio: Float[Tensor, " *S"], advantages: Float[Tensor, " *S"], epsilon: float, epsilon_high: float
) -> Bool[Tensor, " *S"]:
    """True where the clip has removed the gradient."""
    return ((ratio > 1 + epsilon_high) & (advantages > 0)) | ((ratio < 1 - epsilon) & (advantages < 0))


def estimate_kl(
    estimator: KlEstimator, logps: Float[Tensor, " *S"], ref_logps: Float[Tensor, " *S"]
) -> Float[Tensor, " *S"]:
    """KL(policy || reference) from samples of the policy (Schulman 2020), with d = ref_logps - logps.

    k1  -d             unbiased, may be negative; as a loss its mean gradient is 0, so use it only as a metric
    k2  d^2 / 2        biased, never negative; as a loss its gradient is that of KL(policy || reference) (ESPO)
    k3  e^d - 1 - d    unbiased, never negative; as a loss its gradient is that of KL(reference || policy) (d1, STP)
    """
    d = ref_logps - logps
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d * d / 2
    return d.expm1() - d


def aggregate_loss(
    aggregation: LossAggregation, values: Float[Tensor, "B L"], normalizer_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """From a value per token to one number.

    sequence  mean over rows of the mean over the row's tokens (eq. 1); a row without tokens counts as 0
    token     sum over all tokens / number of tokens: long responses weigh more. The value depends on the micro-batches
              (`training.micro_batch_size`), as it does in the published code
    sum       mean over rows of the sum over the row's tokens: not divided by the length
    """
    total = (values * normalizer_mask).sum(1)
    if aggregation == "sequence":
        return (total / normalizer_mask.sum(1).clamp(min=1)).mean()
    if aggregation == "token":
        return total.sum() / normalizer_mask.sum().clamp(min=1)
    return total.mean()
