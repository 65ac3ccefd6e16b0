"""How many tokens each of K mask samples masks: independent or correlated mask ratios.

Each of the K numbers alone is uniform in [0, 1], so every rule keeps the mean of an estimator and changes its variance.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

TimestepSampling = Literal["independent", "low_discrepancy", "stratified", "antithetic"]


def sample_uniforms(
    timestep_sampling: TimestepSampling, num_samples: int, rows: int, generator: torch.Generator
) -> Float[Tensor, "K B"]:
    """One uniform number per mask sample and row, in double precision, so that 1 - u is exact.

    independent      u_j
    low_discrepancy  (u + j/K) mod 1: one shift of an even grid (systematic sampling)
    stratified       (j + u_j) / K: one in each of K strata. For a linear integrand V_t falls as 1/K^3 instead of 1/K
    antithetic       pairs u, 1 - u, u', 1 - u' ...; the linear part of the integrand cancels
    """

    def rand(count: int) -> Float[Tensor, "k B"]:
        return torch.rand(count, rows, generator=generator, dtype=torch.float64)

    index = torch.arange(num_samples, dtype=torch.float64)[:, None]
    if timestep_sampling == "low_discrepancy":
        return (rand(1) + index / num_samples) % 1
    if timestep_sampling == "stratified":
        return (index + rand(num_samples)) / num_samples
    if timestep_sampling == "antithetic":
        first = rand(num_samples // 2)
        return torch.stack([first, 1 - first], 1).flatten(0, 1)
    return rand(num_samples)


def uniform_counts(u: Float[Tensor, "K B"], low: int, high: Int[Tensor, " B"]) -> Int[Tensor, "K B"]:
    """k ~ U{low .. high}. With low = 1, u and 1 - u give k and n + 1 - k; with low = 0, k and n - k."""
    return (low + (u * (high - low + 1)).long()).minimum(high.clamp(min=low))
