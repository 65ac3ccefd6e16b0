"""The terms of a loss: importance ratio, clipped surrogate, KL estimate, and the aggregation to one number."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]
# sequence: eq. 1. token: the published code of d1, SPG and DiffuCoder. sum: wd1.
LossAggregation = Literal["sequence", "token", "sum"]
# Above this log-ratio e^x is continued by its tangent. Its square and the square of a network's gradient still fit into
# float32 together, so the norm of the gradient stays finite and is clipped.
MAX_EXPONENT = 20.0


def at_least_float32(x: Float[Tensor, " *S"]) -> Float[Tensor, " *S"]:
    """bfloat16 and float16 become float32: a log-ratio of bfloat16 numbers has an error of several percent."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def log_ratio(logps: Float[Tensor, " *S"], other_logps: Float[Tensor, " *S"]) -> Float[Tensor, " *S"]:
    """logps - other_logps, in float32 or more."""
    return at_least_float32(logps) - at_least_float32(other_logps)


def bounded_exp(x: Float[Tensor, " *S"]) -> Float[Tensor, " *S"]:
    """e^x up to x = `MAX_EXPONENT`, and its tangent above: finite in value and gradient for every finite x.

    An infinite value would make the gradient NaN even where a clip makes the loss constant (0 times infinity). The
    tangent keeps the direction of the gradient; a constant would leave the worst tokens without any.
    """
    return x.clamp(max=MAX_EXPONENT).exp() + _tangent(x)


def bounded_expm1(x: Float[Tensor, " *S"]) -> Float[Tensor, " *S"]:
    """`bounded_exp(x)` - 1, exact near 0."""
    return x.clamp(max=MAX_EXPONENT).expm1() + _tangent(x)


def _tangent(x: Float[Tensor, " *S"]) -> Float[Tensor, " *S"]:
    """What the tangent of e^x at `MAX_EXPONENT` adds; exactly 0 below."""
    return math.exp(MAX_EXPONENT) * (x - MAX_EXPONENT).relu()


def token_ratio(logps: Float[Tensor, "B L"], old_logps: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """rho = exp(B_new - B_old) of the token-wise ELBO (eq. 4). Exactly 1 where the policy has not changed."""
    return bounded_exp(log_ratio(logps, old_logps))


def mean_log_ratio(
    logps: Float[Tensor, "B L"], old_logps: Float[Tensor, "B L"], normalizer_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, " B"]:
    """(B_new - B_old) / |o|, with B the ELBO summed over the row's tokens."""
    difference = log_ratio(logps, old_logps).where(normalizer_mask, 0.0).sum(1)
    return difference / normalizer_mask.sum(1).clamp(min=1)


def sequence_ratio(
    logps: Float[Tensor, "B L"], old_logps: Float[Tensor, "B L"], normalizer_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, " B"]:
    """rho = exp((B_new - B_old) / |o|) of the summed ELBO: the geometric mean of the token ratios (GSPO, ESPO)."""
    return bounded_exp(mean_log_ratio(logps, old_logps, normalizer_mask))


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
    k3  e^d - 1 - d    unbiased, never negative; as a loss its gradient is that of KL(reference || policy) (d1, STP).
                       e^d is bounded (`bounded_exp`)
    """
    d = log_ratio(ref_logps, logps)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d * d / 2
    return bounded_expm1(d) - d


def aggregate_loss(
    aggregation: LossAggregation, values: Float[Tensor, "B L"], normalizer_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """From a value per token to one number.

    sequence  mean over rows of the mean over the row's tokens (eq. 1); a row without tokens counts as 0
    token     sum over all tokens / number of tokens: long responses weigh more
    sum       mean over rows of the sum over the row's tokens: not divided by the length
    """
    total = values.where(normalizer_mask, 0.0).sum(1)
    if aggregation == "sequence":
        return (total / normalizer_mask.sum(1).clamp(min=1)).mean()
    if aggregation == "token":
        return total.sum() / normalizer_mask.sum().clamp(min=1)
    return total.mean()


def mean_of_responses(values: Float[Tensor, " B"], normalizer_mask: Bool[Tensor, "B L"]) -> Float[Tensor, ""]:
    """The mean over the rows that have tokens, for metrics; 0 if no row has any."""
    has_tokens = normalizer_mask.any(1)
    return values.where(has_tokens, 0.0).sum() / has_tokens.sum().clamp(min=1)


def mean_of_tokens(values: Float[Tensor, "B L"], normalizer_mask: Bool[Tensor, "B L"]) -> Float[Tensor, ""]:
    """The mean over the rows that have tokens of the mean over the row's tokens, for metrics."""
    total = values.where(normalizer_mask, 0.0).sum(1)
    return mean_of_responses(total / normalizer_mask.sum(1).clamp(min=1), normalizer_mask)
