"""JustGRPO's likelihood: the response read from left to right, each token with all later ones hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from stipule.estimators.views import views_of, weighted_sum
from stipule.types import Responses, Views


@dataclass(frozen=True, kw_only=True)
class Autoregressive:
    """score_i = log p(x0_i | prompt, anchors, x0_j for j < i), one view a token (JustGRPO).

    An exact likelihood of the model read in this order, without noise; it is that of the sampled trajectory when the
    sampler too goes from left to right (`sampler.block=1`). It costs as many views as the longest response has
    scored tokens.
    """

    kind: Literal["autoregressive"] = "autoregressive"

    def views(self, length: int, calls: int) -> int:
        return length

    def draw(self, responses: Responses, updates: int, generator: torch.Generator) -> list[Views]:
        """The same views in every update: view k asks each row for its k-th scored token."""
        scored = responses.scored
        place = scored.long().cumsum(1) - 1
        asked = torch.arange(max(1, int(scored.sum(1).amax())), device=scored.device)[:, None, None]
        weight = (place == asked) & scored
        position = torch.arange(scored.shape[1], device=scored.device)
        first = torch.where(weight.any(2), weight.long().argmax(2), scored.shape[1])
        hidden = (position >= first[:, :, None]) & responses.free
        return [views_of(responses, hidden, weight.float())] * updates

    read = weighted_sum
