"""UniGRPO's likelihood: one masked view an update, its share of masks rising to all over the mu updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from stipule.errors import RecipeError
from stipule.estimators.views import bernoulli_hidden, views_of, weighted_sum
from stipule.types import Responses, Views


@dataclass(frozen=True, kw_only=True)
class UniGrpo:
    """score_i = 1[i hidden] log p(x0_i | x_t), without 1/t (Yang et al. 2025, MMaDA, alg. 1).

    Each response starts at its own t_0 ~ U(t_min, 1); update j of mu hides each token with probability
    t_j = t_0 + j/(mu - 1) (1 - t_0), so that the last sees a fully masked response. The prompt is never masked, and
    the loss is a mean over the hidden tokens (`counted`). Biased: sum_i E[1[i hidden] log p(x0_i | x_t)] is a part
    of the ELBO that weighs all t alike.
    """

    kind: Literal["unigrpo"] = "unigrpo"
    t_min: float = 0.1  # least first share of masks (IGPO's code: 30 of 256 steps)

    def __post_init__(self) -> None:
        if not 0 < self.t_min < 1:
            raise RecipeError(
                f"estimator.t_min is {self.t_min}; it is a share of masks and must lie in (0, 1); try 0.1"
            )

    def views(self, length: int, calls: int) -> int:
        return 1

    def draw(self, responses: Responses, updates: int, generator: torch.Generator) -> list[Views]:
        """One view for each update."""
        scored = responses.scored.cpu()
        first = self.t_min + (1 - self.t_min) * torch.rand(1, len(scored), generator=generator)
        drawn = []
        for update in range(updates):
            t = first + (1 - first) * (update / max(1, updates - 1))
            hidden = bernoulli_hidden(t, scored, torch.rand(1, *scored.shape, generator=generator))
            drawn.append(views_of(responses, hidden, hidden.float(), counted=hidden[0]))
        return drawn

    read = weighted_sum
