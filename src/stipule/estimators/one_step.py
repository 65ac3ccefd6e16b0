"""The one-step likelihood of Diffu-GRPO: every token from a fully masked response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from stipule.errors import RecipeError
from stipule.estimators.views import views_of, weighted_sum
from stipule.types import Responses, Views


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """score_i = log p(x0_i | masked prompt, anchors), all other tokens hidden: one model call (Zhao et al. 2025, d1).

    Each prompt token is hidden with probability `prompt_mask`, anew for every inner update: a regulariser that lets
    the mu updates see different inputs. The tokens after the end of the text are hidden too (what they hold would
    tell where the text ends) but have no weight. Biased: the mean-field likelihood of the response, not its ELBO.
    """

    kind: Literal["one_step"] = "one_step"
    prompt_mask: float = 0.15  # d1's p_mask_prompt; table 8 of STP: 0

    def __post_init__(self) -> None:
        if not 0 <= self.prompt_mask < 1:
            raise RecipeError(
                f"estimator.prompt_mask is {self.prompt_mask}; it is the share of hidden prompt tokens and must lie "
                "in [0, 1); try 0.15"
            )

    def views(self, length: int, calls: int) -> int:
        return 1

    def draw(self, responses: Responses, updates: int, generator: torch.Generator) -> list[Views]:
        """Everything hidden; only the prompt's masks differ between the updates."""
        prompt = responses.prompt_mask.cpu()
        hidden, weight = responses.free[None], responses.scored[None].float()
        return [
            views_of(
                responses,
                hidden,
                weight,
                ((torch.rand(prompt.shape, generator=generator) < self.prompt_mask) & prompt)[None],
            )
            for _ in range(updates)
        ]

    read = weighted_sum
