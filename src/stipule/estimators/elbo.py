"""The evidence lower bound of eq. 3, one term per token: the estimator that STP is built on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.errors import RecipeError
from stipule.estimators.estimator import Diagnostics, any_length, weighted_sum
from stipule.estimators.estimator_variance import per_sample_variance
from stipule.estimators.importance_sampling import LossHistory, importance_sampled_counts, loss_by_mask_ratio
from stipule.estimators.mask_samples import bernoulli_masks, cyclic_masks, exact_count_masks, make_mask_samples
from stipule.estimators.timestep_sampling import TimestepSampling, sample_uniforms, uniform_counts
from stipule.types import MaskSamples, Rollouts


@dataclass(frozen=True, kw_only=True)
class Elbo:
    """Monte-Carlo ELBO: sum_k 1[i masked in k] weight_k log p(x0_i | x_k), whose sum over i estimates B of eq. 3.

    `masks` is the distribution of a mask sample, with n tokens in `loss_mask` and u ~ U(0, 1):
      bernoulli       t = 1 - (1 - t_min) u, each token masked with probability t, weight 1/(K t)   eq. 3 and 7
      exact           k ~ U{1..n}, a uniform k-subset masked, weight n/(K k)            Nie et al. 2025, eq. 6
      rao_blackwell   k ~ U{0..n}, weight (n+1)/(K k): E[1/t | k masked], so `bernoulli` with t integrated out; ESPO
    All have the ELBO as their mean, `bernoulli` except for the part of the integral below t_min. As t -> 0 its weight
    is unbounded and its variance at t_min = 0 infinite, which the boundedness of assumption 4.2 excludes. The others
    have no such tail, and `exact` never spends a forward pass on nothing.

    `timestep_sampling` says how the K mask ratios of a response depend on each other (`timestep_sampling.py`).
    `subsets: cyclic` lets the masked sets follow each other around one random order (`mask_samples.py`). Special cases:
      exact + antithetic + cyclic           k and n+1-k tokens, the second set: the complement and one more token
      rao_blackwell + antithetic + cyclic   k and n-k, exact complements (ESPO's pair; one of the two may be empty)
    `importance_sampling` draws k in proportion to the loss per masked token at each mask ratio, with weight
    1/(K k q(k)) (`importance_sampling.py`). `fitted` measures these losses in earlier RL steps, without a forward pass;
    the first step draws every count equally often.

    On a block diffusion model the mean is the sum over blocks of the ELBO of each block given the clean tokens before
    it: a lower bound of log p too. One t (or k) is drawn for the whole response, and the weights are the same, because
    the masks inside a block have the distribution of a block masked alone (docs/decisions.md).

    The masks of all inner updates are drawn at once and shared by the new, old and reference policy (common random
    numbers), so the ratio is 1 where the policy has not changed.
    """

    kind: Literal["elbo"] = "elbo"
    num_samples: int = 3  # K (table 8)
    masks: Literal["bernoulli", "exact", "rao_blackwell"] = "bernoulli"
    t_min: float = 1e-3  # smallest mask ratio for `bernoulli`
    timestep_sampling: TimestepSampling = "independent"
    subsets: Literal["independent", "cyclic"] = "independent"
    importance_sampling: Literal["fitted"] | tuple[float, ...] | None = None  # null: every count equally often

    depends_on_advantage: ClassVar[bool] = False
    repeats_masks: ClassVar[bool] = False
    check_length = any_length
    combine = weighted_sum

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise RecipeError(
                f"estimator.num_samples is {self.num_samples}; it is the number of mask samples and must be 1 or more; "
                "try 3"
            )
        if not 0 <= self.t_min < 1:
            raise RecipeError(f"estimator.t_min is {self.t_min}; it is a mask ratio and must lie in [0, 1); try 0.001")
        if self.timestep_sampling == "antithetic" and self.num_samples % 2:
            raise RecipeError(
                f"estimator.timestep_sampling is antithetic with num_samples {self.num_samples}; mask samples come in "
                f"pairs, so num_samples must be even; try num_samples={self.num_samples + 1}, or "
                "timestep_sampling=stratified"
            )
        if self.masks == "bernoulli" and self.subsets == "cyclic":
            raise RecipeError(
                "estimator.subsets is cyclic with masks bernoulli; a cyclic subset has an exact number of tokens; "
                "set masks=exact, or subsets=independent"
            )
        self._check_importance_sampling()

    def _check_importance_sampling(self) -> None:
        importance = self.importance_sampling
        if importance is None:
            return
        if self.masks != "exact":
            raise RecipeError(
                f"estimator.importance_sampling is {importance} with masks {self.masks}; it decides how the exact "
                "number of masked tokens is drawn; set masks=exact, or remove it"
            )
        if importance != "fitted" and (len(importance) < 2 or min(importance) < 0 or max(importance) <= 0):
            raise RecipeError(
                f"estimator.importance_sampling is {list(importance)}; it is the loss of a token at equally spaced "
                "mask ratios, from 0 to 1: 2 numbers or more, none below 0, not all 0; try fitted"
            )

    @property
    def has_independent_samples(self) -> bool:
        """Whether there are several, independently drawn mask samples: only then is their variance that of one."""
        return self.num_samples > 1 and self.timestep_sampling == "independent" and self.subsets == "independent"

    def num_masks(self, gen_length: int, nfe: int) -> int:
        return self.num_samples

    def fit(self, history: LossHistory) -> Elbo:
        """With the losses of earlier steps in place of `importance_sampling: fitted`; None before the first step."""
        return replace(self, importance_sampling=history.importance()) if self.importance_sampling == "fitted" else self

    def sample_masks(self, rollouts: Rollouts, num_iterations: int, generator: torch.Generator) -> list[MaskSamples]:
        """K mask samples for each of the inner updates."""
        return [self._sample_masks(rollouts, generator) for _ in range(num_iterations)]

    def _sample_masks(self, rollouts: Rollouts, generator: torch.Generator) -> MaskSamples:
        rows, length = rollouts.completion_ids.shape
        u = sample_uniforms(self.timestep_sampling, self.num_samples, rows, generator)
        orders = 1 if self.subsets == "cyclic" else self.num_samples
        return self.masks_at(rollouts, u, torch.rand(orders, rows, length, generator=generator))

    def masks_at(self, rollouts: Rollouts, u: Float[Tensor, "K B"], noise: Float[Tensor, "J B L"]) -> MaskSamples:
        """The mask samples for these uniform numbers and noise (on the CPU, so every device gets the same)."""
        loss_mask, num_samples = rollouts.loss_mask.cpu(), len(u)
        if self.masks == "bernoulli":
            t = (1 - (1 - self.t_min) * u).clamp(min=self.t_min).float()
            masked = bernoulli_masks(t, loss_mask, noise)
            weights = (num_samples * t).reciprocal()
        else:
            n = loss_mask.sum(1)
            low = 1 if self.masks == "exact" else 0
            if isinstance(self.importance_sampling, tuple):
                count, probability = importance_sampled_counts(u, self.importance_sampling, n, loss_mask.shape[1])
            else:
                count = uniform_counts(u, low, n)
                probability = 1 / (n + 1 - low).clamp(min=1).double()  # of this count
            masked = (cyclic_masks if self.subsets == "cyclic" else exact_count_masks)(count, loss_mask, noise)
            weights = 1 / (num_samples * count.clamp(min=1) * probability).float()
        return make_mask_samples(rollouts, masked, weights[:, :, None] * masked)

    def diagnostics(self, token_logps: Float[Tensor, "K B L"], masks: MaskSamples) -> Diagnostics:
        """The variance of one mask sample if samples are independent, and the losses that `fit` uses."""
        return Diagnostics(
            per_sample_variance(token_logps, masks) if self.has_independent_samples else None,
            loss_by_mask_ratio(token_logps, masks) if self.importance_sampling == "fitted" else None,
        )
