"""Which tokens a view hides: the forward process of eq. 2, restricted to free tokens as eq. 7 says."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor


def bernoulli_hidden(
    t: Float[Tensor, "K B"], scored: Bool[Tensor, "B L"], noise: Float[Tensor, "K B L"]
) -> Bool[Tensor, "K B L"]:
    """Each scored token is hidden with probability t; anchors and text past its end never are (eq. 2, 7)."""
    return (noise < t[:, :, None]) & scored


def exact_hidden(
    count: Int[Tensor, "K B"], scored: Bool[Tensor, "B L"], noise: Float[Tensor, "K B L"]
) -> Bool[Tensor, "K B L"]:
    """A uniformly random subset of exactly `count` scored tokens (Nie et al. 2025, eq. 6)."""
    rank = noise.masked_fill(~scored, 2.0).argsort(2).argsort(2)
    return (rank < count[:, :, None]) & scored
