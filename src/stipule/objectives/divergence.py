"""Estimates of KL(policy || reference) from samples of the policy (Schulman 2020), of a log-ratio d = ref - new."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Divergence = Literal["k1", "k2", "k3"]


def divergence(kind: Divergence, new: Float[Tensor, " *S"], ref: Float[Tensor, " *S"]) -> Float[Tensor, " *S"]:
    """
    k1  -d             unbiased, may be negative; as a loss its gradient is 0 in the mean, so it only watches
    k2  d^2 / 2        biased, never negative; as a loss its gradient is that of KL(policy || reference) (ESPO)
    k3  e^d - 1 - d    unbiased, never negative; as a loss its gradient is that of KL(reference || policy) (d1, STP)
    """
    d = ref - new
    if kind == "k1":
        return -d
    if kind == "k2":
        return d * d / 2
    return d.expm1() - d
