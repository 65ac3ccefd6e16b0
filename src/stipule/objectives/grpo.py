"""Group relative policy optimisation (eq. 1) with one ratio per token (eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from stipule.errors import RecipeError
from stipule.objectives.loss_terms import (
    KlEstimator,
    aggregate_loss,
    clip_mask,
    clipped_surrogate,
    estimate_kl,
    token_ratio,
)
from stipule.types import Loss, LossInputs


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Eq. 1 with the ratio of eq. 4: mean over rows of the mean over the row's tokens.

    |o_i| counts the tokens that the policy chose before the text ended. Anchors have no term in the ELBO, and
    end-of-text filler is not part of the response (docs/decisions.md, rows 4 and 5). `loss_aggregation: token` is the
    published code's mean over all tokens of a micro-batch. A larger `epsilon_high` lets the probability of good tokens
    rise further than that of bad tokens falls (DAPO).
    """

    kind: Literal["grpo"] = "grpo"
    epsilon: float = 0.2  # clip range (table 8)
    epsilon_high: float | None = None  # upper clip range; null: the same as epsilon
    beta: float = 0.04  # KL coefficient (table 8)
    kl_estimator: KlEstimator = "k3"
    loss_aggregation: Literal["sequence", "token"] = "sequence"

    def __post_init__(self) -> None:
        check_coefficients(self.epsilon, self.epsilon_high, self.beta)

    uses_old_policy: ClassVar[bool] = True

    def __call__(self, inputs: LossInputs) -> Loss:
        normalizer_mask = inputs.normalizer_mask
        epsilon_high = self.epsilon_high or self.epsilon
        ratio = token_ratio(inputs.logps, inputs.old_logps)
        advantages = inputs.advantages[:, None].expand_as(ratio)
        objective = clipped_surrogate(ratio, advantages, self.epsilon, epsilon_high)
        metrics = {}
        if self.beta > 0 and inputs.ref_logps is not None:
            kl = estimate_kl(self.kl_estimator, inputs.logps, inputs.ref_logps)
            objective = objective - self.beta * kl
            metrics["policy/kl"] = aggregate_loss("sequence", kl, normalizer_mask).detach()
        with torch.no_grad():
            clipped = clip_mask(ratio, advantages, self.epsilon, epsilon_high)
            metrics["policy/clip_ratio"] = aggregate_loss("sequence", clipped.float(), normalizer_mask)
            metrics["policy/ratio"] = aggregate_loss("sequence", ratio, normalizer_mask)
            metrics["policy/ratio_max"] = ratio.where(normalizer_mask, 1.0).amax()
        return Loss(-aggregate_loss(self.loss_aggregation, objective, normalizer_mask), metrics)


def check_coefficients(epsilon: float, epsilon_high: float | None, beta: float) -> None:
    """Raises RecipeError unless epsilon and beta of eq. 1 are in range."""
    if not 0 < epsilon < 1:
        raise RecipeError(f"objective.epsilon is {epsilon}; it is epsilon of eq. 1 and must lie in (0, 1); try 0.2")
    if epsilon_high is not None and epsilon_high < epsilon:
        raise RecipeError(
            f"objective.epsilon_high is {epsilon_high}; it is the upper clip range and must not be below epsilon, "
            f"which is {epsilon}; try 0.28"
        )
    if beta < 0:
        raise RecipeError(f"objective.beta is {beta}; it is beta of eq. 1 and must be 0 or more; try 0.04")
