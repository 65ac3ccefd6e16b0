"""The plain policy gradient of SPG and wd1: advantage times log-probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from stipule.objectives.loss_terms import LossAggregation, aggregate_loss
from stipule.types import Loss, LossInputs


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """loss = - mean over rows of A times the log-probability estimate. No ratio, no old policy, no reference.

    `loss_aggregation: sequence` is the mean over a response's tokens, `token` the published SPG (long responses weigh
    more), `sum` the published wd1 (not divided by the length; use it with `advantage.kind: wd1`). Nothing corrects for
    the policy that sampled: with `training.num_iterations` above 1 every update after the first is off-policy, as it is
    in SPG's code.
    """

    kind: Literal["reinforce"] = "reinforce"
    loss_aggregation: LossAggregation = "sequence"

    beta: ClassVar[float] = 0.0
    uses_old_policy: ClassVar[bool] = False

    def __call__(self, inputs: LossInputs) -> Loss:
        weighted = inputs.logps * inputs.advantages[:, None]
        return Loss(-aggregate_loss(self.loss_aggregation, weighted, inputs.normalizer_mask), {})
