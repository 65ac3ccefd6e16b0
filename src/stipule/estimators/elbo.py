"""The evidence lower bound of eq. 3 as a score of every token: the estimator that STP is built on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.errors import RecipeError
from stipule.estimators.levels import Levels, uniform_counts, uniforms
from stipule.estimators.profile import Surprise, profiled_counts
from stipule.estimators.views import bernoulli_hidden, circular_hidden, exact_hidden, views_of, weighted_sum
from stipule.types import Responses, Views


@dataclass(frozen=True, kw_only=True)
class Elbo:
    """Monte-Carlo ELBO: score_i = sum_k 1[i hidden in k] weight_k log p(x0_i | x_k), whose sum over i estimates B.

    `masks` says what a view is, with n scored tokens and u ~ U(0, 1):
      bernoulli       t = 1 - (1 - t_min) u, each token hidden with probability t, weight 1/(K t)    eq. 3 and 7
      exact           k ~ U{1..n}, a uniform k-subset hidden, weight n/(K k)           Nie et al. 2025, eq. 6
      rao_blackwell   k ~ U{0..n}, weight (n+1)/(K k): E[1/t | k hidden], so `bernoulli` with t integrated out; ESPO
    All have the ELBO as their mean, `bernoulli` up to the part of the integral below t_min. As t -> 0 its weight is
    unbounded and its variance at t_min = 0 infinite, which the boundedness of assumption 4.2 rules out; the others
    have no such tail, and `exact` never spends a model call on nothing.

    `levels` says how the K uniforms of a response know of one another (`estimators/levels.py`); `subsets: circular`
    makes the hidden sets follow one another around one random order (`estimators/views.py`). Two special cases:
      exact + antithetic + circular           k and n+1-k tokens, the second set the complement plus one of the first
      rao_blackwell + antithetic + circular   k and n-k, exact complements (ESPO's pair; one of the two may be empty)
    `profile` is the surprise of a hidden token by the share of hidden tokens: k is drawn in proportion to it, weight
    1/(K k q(k)) (importance sampling, `estimators/profile.py`). `fitted` measures it in the scores of earlier RL steps,
    at no model call; the first step draws every count alike.

    The views of all inner updates are drawn at once and shared by the new, old and reference policy (common random
    numbers), so that the ratio is 1 where nothing has changed.
    """

    kind: Literal["elbo"] = "elbo"
    samples: int = 3  # K (table 8)
    masks: Literal["bernoulli", "exact", "rao_blackwell"] = "bernoulli"
    t_min: float = 1e-3  # least share of masks for `bernoulli`
    levels: Levels = "independent"
    subsets: Literal["independent", "circular"] = "independent"
    profile: Literal["fitted"] | tuple[float, ...] | None = None  # None: every count alike

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RecipeError(
                f"estimator.samples is {self.samples}; it is the number of views and must be 1 or more; try 3"
            )
        if not 0 <= self.t_min < 1:
            raise RecipeError(
                f"estimator.t_min is {self.t_min}; it is a share of masks and must lie in [0, 1); try 0.001"
            )
        if self.levels == "antithetic" and self.samples % 2:
            raise RecipeError(
                f"estimator.levels is antithetic with samples {self.samples}; views come in pairs, so samples must be "
                f"even; try samples={self.samples + 1}, or levels=jittered"
            )
        if self.masks == "bernoulli" and self.subsets == "circular":
            raise RecipeError(
                "estimator.subsets is circular with masks bernoulli; a circular subset has an exact count of tokens; "
                "set masks=exact, or subsets=independent"
            )
        if self.profile is None:
            return
        if self.masks != "exact":
            raise RecipeError(
                f"estimator.profile is {self.profile} with masks {self.masks}; it is what the exact count of hidden "
                "tokens is drawn by; set masks=exact, or remove it"
            )
        if self.profile != "fitted" and (len(self.profile) < 2 or min(self.profile) < 0 or max(self.profile) <= 0):
            raise RecipeError(
                f"estimator.profile is {list(self.profile)}; it is the surprise of a token at equal distances of the "
                "share of hidden tokens, from none to all: 2 numbers or more, none below 0, not all 0; try fitted"
            )

    def fitted(self, seen: Surprise) -> Elbo:
        """With what a run has seen in the place of `profile: fitted`; as it is without that, or before anything is."""
        return replace(self, profile=seen.profile()) if self.profile == "fitted" else self

    @property
    def independent(self) -> bool:
        """Whether the views are independent draws, and more than one: then their spread is the variance of one."""
        return self.samples > 1 and self.levels == "independent" and self.subsets == "independent"

    def views(self, length: int, calls: int) -> int:
        return self.samples

    def draw(self, responses: Responses, updates: int, generator: torch.Generator) -> list[Views]:
        """K views for each of the inner updates. Cannot see a reward."""
        return [self._draw(responses, generator) for _ in range(updates)]

    def _draw(self, responses: Responses, generator: torch.Generator) -> Views:
        rows, length = responses.tokens.shape
        u = uniforms(self.levels, self.samples, rows, generator)
        orders = 1 if self.subsets == "circular" else self.samples
        return self.place(responses, u, torch.rand(orders, rows, length, generator=generator))

    def place(self, responses: Responses, u: Float[Tensor, "K B"], noise: Float[Tensor, "J B L"]) -> Views:
        """The views at these levels and with this noise (on the CPU, so that every device sees the same)."""
        scored, samples = responses.scored.cpu(), len(u)
        if self.masks == "bernoulli":
            t = (1 - (1 - self.t_min) * u).clamp(min=self.t_min).float()
            hidden = bernoulli_hidden(t, scored, noise)
            worth = (samples * t).reciprocal()
        else:
            n = scored.sum(1)
            least = 1 if self.masks == "exact" else 0
            if isinstance(self.profile, tuple):
                count, chance = profiled_counts(u, self.profile, n, scored.shape[1])
            else:
                count = uniform_counts(u, least, n)
                chance = 1 / (n + 1 - least).clamp(min=1).double()  # of this count
            hidden = (circular_hidden if self.subsets == "circular" else exact_hidden)(count, scored, noise)
            worth = 1 / (samples * count.clamp(min=1) * chance).float()
        return views_of(responses, hidden, worth[:, :, None] * hidden)

    read = weighted_sum
