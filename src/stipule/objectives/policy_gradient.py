"""The plain policy gradient of SPG and wd1: advantage times score, no ratio, no old policy, no reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from stipule.objectives.aggregate import Aggregate, aggregate
from stipule.types import Loss


@dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """loss = - mean over rows of A times the score of the response.

    `average: sequence` is the mean over a response's tokens, `token` the published SPG (long responses weigh more),
    `sum` the published wd1 (no length in the loss; with `credit.kind: exponential`). Nothing corrects for the policy
    that sampled: with `training.updates` above 1 all but the first update are off-policy, as they are in SPG's code.
    """

    kind: Literal["policy_gradient"] = "policy_gradient"
    average: Aggregate = "sequence"

    kl: ClassVar[float] = 0.0
    compares: ClassVar[bool] = False

    def __call__(
        self,
        new: Float[Tensor, "B L"],
        old: Float[Tensor, "B L"],
        ref: Float[Tensor, "B L"] | None,
        advantage: Float[Tensor, " B"],
        counted: Bool[Tensor, "B L"],
    ) -> Loss:
        return Loss(-aggregate(self.average, new * advantage[:, None], counted), {})
