"""How much each of K views hides: uniforms in [0, 1] that may know of one another, and their price list.

Every uniform alone is U(0, 1), so every rule leaves the mean of an estimator as it is and moves its variance.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Levels = Literal["independent", "systematic", "jittered", "antithetic"]


def uniforms(levels: Levels, samples: int, rows: int, generator: torch.Generator) -> Float[Tensor, "K B"]:
    """One uniform for each view and row, in double precision (the complement 1 - u must be exact).

    independent  u_j
    systematic   (u + j/K) mod 1      one shift of a regular comb
    jittered     (j + u_j) / K        one in each of K strata: for a linear integrand V_t falls as 1/K^3, not 1/K
    antithetic   u, 1 - u, u', 1 - u' ...   pairs; the linear part of the integrand cancels
    """

    def rand(count: int) -> Float[Tensor, "k B"]:
        return torch.rand(count, rows, generator=generator, dtype=torch.float64)

    place = torch.arange(samples, dtype=torch.float64)[:, None]
    if levels == "systematic":
        return (rand(1) + place / samples) % 1
    if levels == "jittered":
        return (place + rand(samples)) / samples
    if levels == "antithetic":
        first = rand(samples // 2)
        return torch.stack([first, 1 - first], 1).flatten(0, 1)
    return rand(samples)


def uniform_counts(u: Float[Tensor, "K B"], least: int, most: Int[Tensor, " B"]) -> Int[Tensor, "K B"]:
    """k ~ U{least .. most}. With least = 1, u and 1 - u give k and n + 1 - k; with least = 0, k and n - k."""
    return (least + (u * (most - least + 1)).long()).minimum(most.clamp(min=least))
