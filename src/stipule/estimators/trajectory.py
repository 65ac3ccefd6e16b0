"""The exact likelihood of the sampled trajectory: every token in the state in which it was committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.estimators.views import views_of, weighted_sum
from stipule.types import Responses, Views


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """score_i = log p(x0_i | what was committed before i's step), weight 1 (TraceRL, CJ-GRPO).

    The steps that committed tokens are merged by `shrink`: tokens of s consecutive steps are scored together, in the
    state before the first of them. With s = 1 the sum is log prod_i p(x0_i | state), exactly what the sampler chose
    (at temperature 1; tokens of the argmax finish are scored as if they had been drawn). It costs ceil(steps / s)
    views and draws no noise, so its variance given the response is 0.
    """

    kind: Literal["trajectory"] = "trajectory"
    shrink: int = 1  # s; TraceRL's code: 8

    def __post_init__(self) -> None:
        if self.shrink < 1:
            raise RecipeError(
                f"estimator.shrink is {self.shrink}; it is a number of steps and must be 1 or more; try 8"
            )

    def views(self, length: int, calls: int) -> int:
        return -(-calls // self.shrink)

    def draw(self, responses: Responses, updates: int, generator: torch.Generator) -> list[Views]:
        """The same views in every update. Raises RecipeError if the responses do not say when tokens were revealed."""
        if bool((responses.revealed < 0)[responses.scored].any()):
            raise RecipeError(
                "estimator.kind is trajectory, but some responses do not say in which step their tokens were revealed; "
                "use responses of a sampler, or another estimator"
            )
        part = _parts(responses, self.shrink)
        each = torch.arange(int(part.max()) + 1, device=part.device)[:, None, None]
        hidden = (part >= each) & responses.free
        weight = ((part == each) & responses.scored).float()
        return [views_of(responses, hidden, weight)] * updates

    read = weighted_sum


def _parts(responses: Responses, shrink: int) -> Int[Tensor, "B L"]:
    """Which view scores a token: its step's place among the row's distinct steps, divided by `shrink`."""
    revealed = responses.revealed.masked_fill(~responses.free, -1)
    steps = torch.arange(int(revealed.max().clamp(min=0)) + 1, device=revealed.device)
    taken = (revealed[:, :, None] == steps).any(1)  # B x steps
    place = taken.long().cumsum(1) - 1
    return place.gather(1, revealed.clamp(min=0)) // shrink
