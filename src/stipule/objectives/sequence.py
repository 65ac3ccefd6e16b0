"""The sequence-level objective of GSPO and ESPO: one ratio for a whole response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.objectives.divergence import divergence
from stipule.objectives.grpo import check_clip
from stipule.objectives.ratio import clipped_surrogate, sequence_ratio, stopped
from stipule.types import Loss


@dataclass(frozen=True, kw_only=True)
class SequenceRatio:
    """mean over rows of min(rho A, clip(rho) A) - beta KL, rho = exp((B - B_old) / |o|), B the summed score.

    The ELBO bounds the likelihood of a response, not of its tokens, so only its sum has a meaning; dividing by |o|
    keeps the ratio near 1. KL is the response's, per counted token: k2 = (B - B_ref)^2 / (2 |o|) as in ESPO, or
    k1 = (B - B_ref) / |o|. There is no k3: the exponential of a whole response's difference overflows. ESPO divides by
    the full length L, end-of-text filler included; here |o| is the response.
    """

    kind: Literal["sequence_ratio"] = "sequence_ratio"
    clip: float = 0.2
    clip_high: float | None = None  # None: the same epsilon on both sides
    kl: float = 0.0
    divergence: Literal["k1", "k2"] = "k2"

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
        ratio, high = sequence_ratio(new, old, counted), self.clip_high or self.clip
        gain = clipped_surrogate(ratio, advantage, self.clip, high)
        metrics = {}
        if self.kl > 0 and ref is not None:
            whole = divergence(self.divergence, (new * counted).sum(1), (ref * counted).sum(1))
            distance = whole / counted.sum(1).clamp(min=1)
            gain = gain - self.kl * distance
            metrics["policy/kl"] = distance.mean().detach()
        with torch.no_grad():
            metrics["policy/clipped"] = stopped(ratio, advantage, self.clip, high).float().mean()
            metrics["policy/ratio"] = ratio.mean()
            metrics["policy/ratio_max"] = ratio.amax()
        return Loss(-gain.mean(), metrics)
