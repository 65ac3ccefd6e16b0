"""The importance ratio of eq. 4 and the KL estimate of eq. 1, per token."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def token_ratio(new: Float[Tensor, "B L"], old: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """rho = exp(B_new - B_old) of the token-wise ELBO scores (eq. 4). Exactly 1 where nothing has changed."""
    return (new - old).exp()


def k3(new: Float[Tensor, "B L"], ref: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """exp(d) - d - 1 with d = ref - new: a KL estimate that is never negative (Schulman 2020; used by d1 and STP)."""
    difference = ref - new
    return difference.expm1() - difference


def clipped_surrogate(ratio: Float[Tensor, "B L"], advantage: Float[Tensor, " B"], clip: float) -> Float[Tensor, "B L"]:
    """min(rho A, clip(rho, 1 - eps, 1 + eps) A) of eq. 1."""
    gain = advantage[:, None]
    return (ratio * gain).minimum(ratio.clamp(1 - clip, 1 + clip) * gain)
