"""The plain policy gradient of SPG and wd1: advantage times log-probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from stipule.objectives.grpo import check_published_mean
from stipule.objectives.loss_terms import LossAggregation, aggregate_loss, at_least_float32
from stipule.types import Loss, LossInputs


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """loss = - mean over rows of A times the log-probability estimate. No ratio, no old policy, no reference.

    `loss_aggregation: sequence` is the mean over a response's tokens, `token` the mean over all tokens of an inner
    update (long responses weigh more), `sum` the published wd1 (not divided by the length; use it with
    `advantage.kind: wd1`). Nothing corrects for the policy that sampled: with `training.num_iterations` above 1 every
    update after the first is off-policy, as it is in SPG's code.

    `match_published_code` with `loss_aggregation: token` does what SPG's code does: a mean over the tokens of each
    micro-batch. `Grpo` says what it depends on.
    """

    kind: Literal["reinforce"] = "reinforce"
    loss_aggregation: LossAggregation = "sequence"
    match_published_code: bool = False  # with loss_aggregation token: a mean for each micro-batch

    beta: ClassVar[float] = 0.0
    uses_old_policy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_published_mean(self.loss_aggregation, self.match_published_code)

    @property
    def averages_tokens(self) -> bool:
        return self.loss_aggregation == "token" and not self.match_published_code

    def __call__(self, inputs: LossInputs) -> Loss:
        weighted = at_least_float32(inputs.logps) * inputs.advantages[:, None]
        return Loss(-aggregate_loss(self.loss_aggregation, weighted, inputs.normalizer_mask), {})
