"""The evidence lower bound of eq. 3 as a score of every token: the estimator that STP is built on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.errors import RecipeError
from stipule.estimators.views import bernoulli_hidden, exact_hidden
from stipule.types import Responses, Views


@runtime_checkable
class Estimator(Protocol):
    """A likelihood estimator: what to hide (`draw`) and how to add it up (`read`)."""

    def draw(self, responses: Responses, updates: int, generator: torch.Generator) -> list[Views]: ...
    def read(
        self, logp: Float[Tensor, "K B L"], views: Views, advantage: Float[Tensor, " B"]
    ) -> Float[Tensor, "B L"]: ...


@dataclass(frozen=True, kw_only=True)
class Elbo:
    """Monte-Carlo ELBO: score_i = sum_k 1[i hidden in k] weight_k log p(x0_i | x_k), whose sum over i estimates B.

    `masks` says how a view is drawn, with n scored tokens:
      bernoulli  t ~ U(t_min, 1), each token hidden with probability t, weight 1/(K t)    eq. 3 and 7 of the paper
      exact      k ~ U{1..n}, a uniform k-subset hidden, weight n/(K k)                   Nie et al. 2025, eq. 6
    Both have the ELBO as their mean, `bernoulli` up to the part of the integral below t_min. As t -> 0 its weight is
    unbounded and its variance at t_min = 0 infinite, which the boundedness of assumption 4.2 rules out; `exact` has
    no such tail. The K views of all inner updates are drawn at once and shared by the new, old and reference policy.
    """

    kind: Literal["elbo"] = "elbo"
    samples: int = 3  # K (table 8)
    masks: Literal["bernoulli", "exact"] = "bernoulli"
    t_min: float = 1e-3  # least share of masks for `bernoulli`

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RecipeError(
                f"estimator.samples is {self.samples}; it is the number of views and must be 1 or more; try 3"
            )
        if not 0 <= self.t_min < 1:
            raise RecipeError(
                f"estimator.t_min is {self.t_min}; it is a share of masks and must lie in [0, 1); try 0.001"
            )

    def draw(self, responses: Responses, updates: int, generator: torch.Generator) -> list[Views]:
        """K views for each of the inner updates. Cannot see a reward."""
        return [self._draw(responses, generator) for _ in range(updates)]

    def _draw(self, responses: Responses, generator: torch.Generator) -> Views:
        scored = responses.scored
        rows, length = scored.shape
        level = torch.rand(self.samples, rows, generator=generator).to(scored.device)
        noise = torch.rand(self.samples, rows, length, generator=generator).to(scored.device)
        if self.masks == "bernoulli":
            t = 1 - (1 - self.t_min) * level  # in (t_min, 1]: never 0
            hidden = bernoulli_hidden(t, scored, noise)
            worth = 1 / (self.samples * t)
        else:
            n = scored.sum(1)
            count = (level * n).long() + 1
            hidden = exact_hidden(count, scored, noise)
            worth = n / (self.samples * count)
        prompt = responses.prompt_mask
        return Views(hidden, worth[:, :, None] * hidden, torch.zeros_like(prompt).expand(self.samples, *prompt.shape))

    def read(self, logp: Float[Tensor, "K B L"], views: Views, advantage: Float[Tensor, " B"]) -> Float[Tensor, "B L"]:
        """Sum over the views; the advantage plays no part."""
        return (logp * views.weight).sum(0)
