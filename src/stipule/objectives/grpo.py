"""Group relative policy optimisation (eq. 1) with one ratio per token (eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from stipule.errors import RecipeError
from stipule.objectives.loss_terms import (
    MAX_EXPONENT,
    KlEstimator,
    LossAggregation,
    aggregate_loss,
    clip_mask,
    clipped_surrogate,
    estimate_kl,
    log_ratio,
    mean_of_tokens,
    token_ratio,
)
from stipule.types import Loss, LossInputs


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Eq. 1 with the ratio of eq. 4: mean over rows of the mean over the row's tokens.

    |o_i| counts the tokens that the policy chose before the text ended. Anchors have no term in the ELBO, and
    end-of-text filler is not part of the response (docs/decisions.md, rows 4 and 5). `loss_aggregation: token` is the
    mean over all tokens of an inner update (DAPO). A larger `epsilon_high` lets the probability of good tokens rise
    further than that of bad tokens falls (DAPO).

    `match_published_code` with `loss_aggregation: token` does what the code of d1 and DiffuCoder does: the mean over
    the tokens of each micro-batch, and then the mean over the micro-batches, weighted by their rows. A long response
    then weighs less beside other long ones. So the loss depends on `training.micro_batch_size`, on the number of
    processes, and on which rows were left out because their advantage is 0.
    """

    kind: Literal["grpo"] = "grpo"
    epsilon: float = 0.2  # clip range (table 8)
    epsilon_high: float | None = None  # upper clip range; null: the same as epsilon
    beta: float = 0.04  # KL coefficient (table 8)
    kl_estimator: KlEstimator = "k3"
    loss_aggregation: Literal["sequence", "token"] = "sequence"
    match_published_code: bool = False  # with loss_aggregation token: a mean for each micro-batch

    def __post_init__(self) -> None:
        check_coefficients(self.epsilon, self.epsilon_high, self.beta)
        check_published_mean(self.loss_aggregation, self.match_published_code)

    uses_old_policy: ClassVar[bool] = True

    @property
    def averages_tokens(self) -> bool:
        return self.loss_aggregation == "token" and not self.match_published_code

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
            metrics["policy/kl"] = mean_of_tokens(kl, normalizer_mask).detach()
        with torch.no_grad():
            clipped = clip_mask(ratio, advantages, self.epsilon, epsilon_high)
            bounded = log_ratio(inputs.logps, inputs.old_logps) > MAX_EXPONENT
            if self.beta > 0 and inputs.ref_logps is not None and self.kl_estimator == "k3":
                bounded |= log_ratio(inputs.ref_logps, inputs.logps) > MAX_EXPONENT
            metrics["policy/clip_ratio"] = mean_of_tokens(clipped.float(), normalizer_mask)
            metrics["policy/frac_bounded"] = mean_of_tokens(bounded.float(), normalizer_mask)
            metrics["policy/ratio"] = mean_of_tokens(ratio, normalizer_mask)
            metrics["policy/ratio_max"] = ratio.where(normalizer_mask, 0.0).amax()
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


def check_published_mean(loss_aggregation: LossAggregation, match_published_code: bool) -> None:
    """Raises RecipeError if `match_published_code` would change nothing."""
    if match_published_code and loss_aggregation != "token":
        raise RecipeError(
            f"objective.match_published_code is true with loss_aggregation {loss_aggregation}; it replaces the mean "
            "over all tokens by one for each micro-batch; set objective.loss_aggregation=token, or "
            "match_published_code=false"
        )
