"""Group relative policy optimisation (eq. 1) with a ratio for every token (eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.errors import RecipeError
from stipule.objectives.aggregate import aggregate
from stipule.objectives.divergence import Divergence, divergence
from stipule.objectives.ratio import clipped_surrogate, stopped, token_ratio
from stipule.types import Loss


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Eq. 1 with the ratio of eq. 4: mean over rows of the mean over a row's counted tokens.

    A row's |o_i| counts what the policy chose before the text ended: anchors have no term in the ELBO and end-of-text
    filler is not the response (docs/decisions.md, rows 4 and 5). `average: token` is the published code's mean over
    all tokens of a portion. `clip_high` lets good tokens rise further than bad ones fall (DAPO).
    """

    kind: Literal["grpo"] = "grpo"
    clip: float = 0.2  # epsilon (table 8)
    clip_high: float | None = None  # None: the same epsilon on both sides
    kl: float = 0.04  # beta (table 8)
    divergence: Divergence = "k3"
    average: Literal["sequence", "token"] = "sequence"

    def __post_init__(self) -> None:
        check_clip(self.clip, self.clip_high, self.kl)

    compares: ClassVar[bool] = True

    def __call__(
        self,
        new: Float[Tensor, "B L"],
        old: Float[Tensor, "B L"],
        ref: Float[Tensor, "B L"] | None,
        advantage: Float[Tensor, " B"],
        counted: Bool[Tensor, "B L"],
    ) -> Loss:
        ratio, high = token_ratio(new, old), self.clip_high or self.clip
        spread = advantage[:, None].expand_as(ratio)
        gain = clipped_surrogate(ratio, spread, self.clip, high)
        metrics = {}
        if self.kl > 0 and ref is not None:
            distance = divergence(self.divergence, new, ref)
            gain = gain - self.kl * distance
            metrics["policy/kl"] = aggregate("sequence", distance, counted).detach()
        with torch.no_grad():
            clipped = stopped(ratio, spread, self.clip, high)
            metrics["policy/clipped"] = aggregate("sequence", clipped.float(), counted)
            metrics["policy/ratio"] = aggregate("sequence", ratio, counted)
            metrics["policy/ratio_max"] = ratio.where(counted, 1.0).amax()
        return Loss(-aggregate(self.average, gain, counted), metrics)


def check_clip(clip: float, clip_high: float | None, kl: float) -> None:
    """Raises RecipeError unless epsilon and beta of eq. 1 are in range."""
    if not 0 < clip < 1:
        raise RecipeError(f"objective.clip is {clip}; it is epsilon of eq. 1 and must lie in (0, 1); try 0.2")
    if clip_high is not None and clip_high < clip:
        raise RecipeError(
            f"objective.clip_high is {clip_high}; it is the upper epsilon and must not be below clip, which is {clip}; "
            "try 0.28"
        )
    if kl < 0:
        raise RecipeError(f"objective.kl is {kl}; it is beta of eq. 1 and must be 0 or more; try 0.04")
