"""Group relative policy optimisation (eq. 1): scores in, loss out; no masks, views, rewards or models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.errors import RecipeError
from stipule.objectives.ratio import clipped_surrogate, k3, token_ratio
from stipule.types import Loss


@runtime_checkable
class Objective(Protocol):
    """Scores -> loss. `kl` is the weight of the reference: at 0 no reference is needed or scored."""

    @property
    def kl(self) -> float: ...
    def __call__(
        self,
        new: Float[Tensor, "B L"],
        old: Float[Tensor, "B L"],
        ref: Float[Tensor, "B L"] | None,
        advantage: Float[Tensor, " B"],
        scored: Bool[Tensor, "B L"],
    ) -> Loss: ...


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Eq. 1 with the ratio of eq. 4: mean over rows of the mean over a row's scored tokens.

    A row's |o_i| counts what the policy chose before the text ended: anchors have no term in the ELBO and end-of-text
    filler is not the response (docs/decisions.md 3.5, rows 4 and 5).
    """

    kind: Literal["grpo"] = "grpo"
    clip: float = 0.2  # epsilon (table 8)
    kl: float = 0.04  # beta (table 8)

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1:
            raise RecipeError(f"objective.clip is {self.clip}; it is epsilon of eq. 1 and must lie in (0, 1); try 0.2")
        if self.kl < 0:
            raise RecipeError(f"objective.kl is {self.kl}; it is beta of eq. 1 and must be 0 or more; try 0.04")

    def __call__(
        self,
        new: Float[Tensor, "B L"],
        old: Float[Tensor, "B L"],
        ref: Float[Tensor, "B L"] | None,
        advantage: Float[Tensor, " B"],
        scored: Bool[Tensor, "B L"],
    ) -> Loss:
        ratio = token_ratio(new, old)
        gain = clipped_surrogate(ratio, advantage, self.clip)
        metrics = {}
        if self.kl > 0 and ref is not None:
            divergence = k3(new, ref)
            gain = gain - self.kl * divergence
            metrics["policy/kl"] = sequence_mean(divergence, scored).detach()
        with torch.no_grad():
            clipped = ((ratio - 1).abs() > self.clip) & (
                ((ratio > 1) & (advantage > 0)[:, None]) | ((ratio < 1) & (advantage < 0)[:, None])
            )
            metrics["policy/clipped"] = sequence_mean(clipped.float(), scored)
            metrics["policy/ratio"] = sequence_mean(ratio, scored)
            metrics["policy/ratio_max"] = ratio.where(scored, 1.0).amax()
        return Loss(-sequence_mean(gain, scored), metrics)


def sequence_mean(values: Float[Tensor, "B L"], scored: Bool[Tensor, "B L"]) -> Float[Tensor, ""]:
    """Mean over rows of the mean over a row's scored tokens; a row without any counts as 0."""
    per_row = (values * scored).sum(1) / scored.sum(1).clamp(min=1)
    return per_row.mean()
