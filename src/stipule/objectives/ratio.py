"""The importance ratio of eq. 4 and its clipping, per token or per sequence."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def token_ratio(new: Float[Tensor, "B L"], old: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """rho = exp(B_new - B_old) of the token-wise ELBO scores (eq. 4). Exactly 1 where nothing has changed."""
    return (new - old).exp()


def sequence_ratio(
    new: Float[Tensor, "B L"], old: Float[Tensor, "B L"], counted: Bool[Tensor, "B L"]
) -> Float[Tensor, " B"]:
    """rho = exp((B_new - B_old) / |o|) of the summed scores: their geometric mean per token (GSPO; ESPO)."""
    return (((new - old) * counted).sum(1) / counted.sum(1).clamp(min=1)).exp()


def clipped_surrogate(
    ratio: Float[Tensor, " *S"], advantage: Float[Tensor, " *S"], low: float, high: float
) -> Float[Tensor, " *S"]:
    """min(rho A, clip(rho, 1 - low, 1 + high) A) of eq. 1; low = high = epsilon there, high > low in DAPO."""
    return (ratio * advantage).minimum(ratio.clamp(1 - low, 1 + high) * advantage)


def stopped(
    ratio: Float[Tensor, " *S"], advantage: Float[Tensor, " *S"], low: float, high: float
) -> Bool[Tensor, " *S"]:
    """Where the clip has taken the gradient away."""
    return ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - low) & (advantage < 0))
