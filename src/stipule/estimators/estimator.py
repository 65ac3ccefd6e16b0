"""The protocol of a likelihood estimator, and the parts that most estimators share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.estimators.importance_sampling import LossHistory
from stipule.types import MaskSamples, Rollouts

Self = TypeVar("Self")


@dataclass(frozen=True)
class Diagnostics:
    """What an estimator measures of one batch, for metrics and for later steps. None: it does not measure this."""

    per_sample_variance: Float[Tensor, " B"] | None = None  # of an estimate from one mask sample, per token
    loss_by_mask_ratio: Float[Tensor, "2 J"] | None = None  # to be added to the run's LossHistory


@runtime_checkable
class Estimator(Protocol):
    """Two pure functions, `sample_masks` and `combine`.

    The masks are data: new, old and reference policy are compared under the same masks.
    """

    @property
    def depends_on_advantage(self) -> bool:
        """Whether `combine` reads the advantage. Such estimates of two policies cannot be compared by a KL term."""
        ...

    @property
    def repeats_masks(self) -> bool:
        """Whether all inner updates of a step have the same masks. Fixed log-probabilities are then computed once."""
        ...

    def check_length(self, gen_length: int, block_length: int) -> None:
        """Raises RecipeError if the estimator cannot be used with responses of this length. Called before loading."""
        ...

    def num_masks(self, gen_length: int, nfe: int) -> int:
        """K, the largest number of mask samples for a response of this length, sampled in `nfe` forward passes."""
        ...

    def fit(self: Self, history: LossHistory) -> Self:
        """The estimator adjusted to the losses of earlier steps; itself if it does not use them."""
        ...

    def sample_masks(self, rollouts: Rollouts, num_iterations: int, generator: torch.Generator) -> list[MaskSamples]:
        """The mask samples of each inner update. Rewards are not visible here."""
        ...

    def combine(
        self, token_logps: Float[Tensor, "K B L"], masks: MaskSamples, advantages: Float[Tensor, " B"]
    ) -> Float[Tensor, "B L"]:
        """One estimate per token from the log-probabilities of the masked tokens; 0 where no sample has weight."""
        ...

    def diagnostics(self, token_logps: Float[Tensor, "K B L"], masks: MaskSamples) -> Diagnostics:
        """Variance and losses of a batch. `token_logps` have no gradient."""
        ...


def weighted_sum(
    estimator: object, token_logps: Float[Tensor, "K B L"], masks: MaskSamples, advantages: Float[Tensor, " B"]
) -> Float[Tensor, "B L"]:
    """`combine` of every estimator that is linear in the log-probabilities. The advantages are not used."""
    return (token_logps * masks.loss_weights).sum(0)


def any_length(estimator: object, gen_length: int, block_length: int) -> None:
    """`check_length` of every estimator that works with all lengths."""


def unchanged(estimator: Self, history: LossHistory) -> Self:
    """`fit` of every estimator that does not use the losses of earlier steps."""
    return estimator


def no_diagnostics(estimator: object, token_logps: Float[Tensor, "K B L"], masks: MaskSamples) -> Diagnostics:
    """`diagnostics` of every estimator that measures nothing."""
    return Diagnostics()
