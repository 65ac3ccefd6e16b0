"""The sequence-level objective of GSPO and ESPO: one ratio per response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from stipule.objectives.grpo import check_coefficients
from stipule.objectives.loss_terms import (
    MAX_EXPONENT,
    at_least_float32,
    clip_mask,
    clipped_surrogate,
    estimate_kl,
    mean_log_ratio,
    mean_of_responses,
    sequence_ratio,
)
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
    averages_tokens: ClassVar[bool] = False

    def __call__(self, inputs: LossInputs) -> Loss:
        normalizer_mask, advantages = inputs.normalizer_mask, inputs.advantages
        epsilon_high = self.epsilon_high or self.epsilon
        ratio = sequence_ratio(inputs.logps, inputs.old_logps, normalizer_mask)
        objective = clipped_surrogate(ratio, advantages, self.epsilon, epsilon_high)
        metrics = {}
        if self.beta > 0 and inputs.ref_logps is not None:
            logps, ref_logps = (
                at_least_float32(x).where(normalizer_mask, 0.0).sum(1) for x in (inputs.logps, inputs.ref_logps)
            )
            kl = estimate_kl(self.kl_estimator, logps, ref_logps) / normalizer_mask.sum(1).clamp(min=1)
            objective = objective - self.beta * kl
            metrics["policy/kl"] = mean_of_responses(kl, normalizer_mask).detach()
        with torch.no_grad():
            clipped = clip_mask(ratio, advantages, self.epsilon, epsilon_high)
            bounded = mean_log_ratio(inputs.logps, inputs.old_logps, normalizer_mask) > MAX_EXPONENT
            metrics["policy/clip_ratio"] = mean_of_responses(clipped.float(), normalizer_mask)
            metrics["policy/frac_bounded"] = mean_of_responses(bounded.float(), normalizer_mask)
            metrics["policy/ratio"] = mean_of_responses(ratio, normalizer_mask)
            metrics["policy/ratio_max"] = ratio.where(normalizer_mask.any(1), 0.0).amax()
        return Loss(-objective.mean(), metrics)
