"""DiffuCoder's coupled likelihood: a fully masked view, a mask and its complement, so that every token is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from stipule.errors import RecipeError
from stipule.estimators.views import bernoulli_hidden, views_of, weighted_sum
from stipule.types import Responses, Views


@dataclass(frozen=True, kw_only=True)
class Coupled:
    """Three views that hide all tokens, a Bernoulli(t) set m, and the rest (Gong et al. 2025, coupled-GRPO).

    score_i = s [ log p(x0_i | all hidden) + 1[i in m] log p(x0_i | m) / t + 1[i not in m] log p(x0_i | rest) / (1-t) ]

    with t ~ U(t_min, 1 - t_min). Each bracketed term has the scale of one log-probability in the mean, so s = 1/3
    gives a mean of three. The published code has s = 1/2 (`compat`): 3/2 of a log-probability, which raises every
    ratio to the power 3/2. Biased: t is cut to an interval, and one view in three is the one-step likelihood.
    """

    kind: Literal["coupled"] = "coupled"
    t_min: float = 0.2  # t ~ U(0.2, 0.8) in the published code
    compat: bool = False  # the published scale

    def __post_init__(self) -> None:
        if not 0 < self.t_min <= 0.5:
            raise RecipeError(
                f"estimator.t_min is {self.t_min}; t is drawn from (t_min, 1 - t_min), so it must lie in (0, 0.5]; "
                "try 0.2"
            )

    def views(self, length: int, calls: int) -> int:
        return 3

    def draw(self, responses: Responses, updates: int, generator: torch.Generator) -> list[Views]:
        """Three views for each update."""
        return [self._draw(responses, generator) for _ in range(updates)]

    def _draw(self, responses: Responses, generator: torch.Generator) -> Views:
        scored = responses.scored.cpu()
        t = self.t_min + (1 - 2 * self.t_min) * torch.rand(1, len(scored), generator=generator)
        masked = bernoulli_hidden(t, scored, torch.rand(1, *scored.shape, generator=generator))
        hidden = torch.cat([scored[None], masked, ~masked & scored])
        worth = torch.cat([torch.ones_like(t), 1 / t, 1 / (1 - t)])[:, :, None]
        return views_of(responses, hidden, worth * hidden / (2 if self.compat else 3))

    read = weighted_sum
