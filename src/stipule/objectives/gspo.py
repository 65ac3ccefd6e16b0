"""The sequence-level objective of GSPO and ESPO: one ratio per response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from stipule.objectives.grpo import check_coefficients
from stipule.objectives.loss_terms import clip_mask, clipped_surrogate, estimate_kl, sequence_ratio
from stipule.types import Loss, LossInputs


@dataclass(frozen=True, kw_only=True)
class Gspo:
    """mean over rows of min(rho A, clip(rho) A) - beta KL, with rho = exp((B - B_old) / |o|) and B the summed ELBO.

    The ELBO bounds the likelihood of a response, not of its tokens, so only its sum has a meaning. Dividing by |o|
    keeps the ratio near 1. The KL term is that of the response, per token: k2 = (B - B_ref)^2 / (2 |o|) as in ESPO, or
    k1 = (B - B_ref) / |o|. k3 is not offered: the exponential of a whole response's difference overflows. ESPO divides
    by the full length L, end-of-text filler included; here |o| is the length of the response.
    """

    kind: Literal["gspo"] = "gspo"
    epsilon: float = 0.2  # clip range
    epsilon_high: float | None = None  # upper clip range; null: the same as epsilon
    beta: float = 0.0  # KL coefficient
    kl_estimator: Literal["k1", "k2"] = "k2"

    def __post_init__(self) -> None:
        check_coefficients(self.epsilon, self.epsilon_high, self.beta)

    uses_old_policy: ClassVar[bool] = True

    def __call__(self, inputs: LossInputs) -> Loss:
        normalizer_mask, advantages = inputs.normalizer_mask, inputs.advantages
        epsilon_high = self.epsilon_high or self.epsilon
        ratio = sequence_ratio(inputs.logps, inputs.old_logps, normalizer_mask)
        objective = clipped_surrogate(ratio, advantages, self.epsilon, epsilon_high)
        metrics = {}
        if self.beta > 0 and inputs.ref_logps is not None:
            logps, ref_logps = ((x * normalizer_mask).sum(1) for x in (inputs.logps, inputs.ref_logps))
            kl = estimate_kl(self.kl_estimator, logps, ref_logps) / normalizer_mask.sum(1).clamp(min=1)
            objective = objective - self.beta * kl
            metrics["policy/kl"] = kl.mean().detach()
        with torch.no_grad():
            metrics["policy/clip_ratio"] = clip_mask(ratio, advantages, self.epsilon, epsilon_high).float().mean()
            metrics["policy/ratio"] = ratio.mean()
            metrics["policy/ratio_max"] = ratio.amax()
        return Loss(-objective.mean(), metrics)
