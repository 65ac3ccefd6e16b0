"""Measures the variance of ELBO estimates (eq. 13-15, figure 3), and splits it into mask ratio and masked tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.estimators.elbo import Elbo
from stipule.estimators.estimator import Estimator
from stipule.estimators.importance_sampling import LossHistory, loss_by_mask_ratio
from stipule.estimators.token_logps import masked_token_logps
from stipule.evaluation.theory import Split, variance_split
from stipule.models.policy import Policy
from stipule.types import MaskSamples, Rollouts

# The ELBO estimators of the tables. Antithetic pairs need an even number of model calls.
ESTIMATORS = {
    "1/t, as in the paper": Elbo(masks="bernoulli"),
    "1/t, t >= 0.15": Elbo(masks="bernoulli", t_min=0.15),
    "Rao-Blackwell": Elbo(masks="rao_blackwell"),
    "exact count": Elbo(masks="exact"),
    "low discrepancy": Elbo(masks="exact", timestep_sampling="low_discrepancy"),
    "low discrepancy, cyclic": Elbo(masks="exact", timestep_sampling="low_discrepancy", subsets="cyclic"),
    "stratified": Elbo(masks="exact", timestep_sampling="stratified"),
    "stratified, cyclic": Elbo(masks="exact", timestep_sampling="stratified", subsets="cyclic"),
    "fitted": Elbo(masks="exact", importance_sampling="fitted"),
    "fitted, low discrepancy, cyclic": Elbo(
        masks="exact", importance_sampling="fitted", timestep_sampling="low_discrepancy", subsets="cyclic"
    ),
    "fitted, stratified, cyclic": Elbo(
        masks="exact", importance_sampling="fitted", timestep_sampling="stratified", subsets="cyclic"
    ),
    "complement pair (ESPO)": Elbo(
        num_samples=2, masks="rao_blackwell", timestep_sampling="antithetic", subsets="cyclic"
    ),
    "antithetic pair": Elbo(num_samples=2, masks="exact", timestep_sampling="antithetic", subsets="cyclic"),
}


def with_calls(estimator: Elbo, calls: int) -> Elbo | None:
    """The estimator with this many model calls per estimate; None if it samples pairs and the number is odd."""
    is_paired = estimator.timestep_sampling == "antithetic"
    return None if is_paired and calls % 2 else replace(estimator, num_samples=calls)


def estimates(
    policy: Policy, rollouts: Rollouts, masks: Sequence[MaskSamples], estimator: Estimator, batch_size: int = 512
) -> Float[Tensor, "R B"]:
    """The summed estimate of every rollout under each of R sets of mask samples, `batch_size` copies per model call."""
    sets_per_call = max(1, batch_size // (len(rollouts) * len(masks[0].masked)))
    no_advantages = torch.zeros(len(rollouts), device=rollouts.completion_ids.device)
    sums = []
    with torch.inference_mode():
        for start in range(0, len(masks), sets_per_call):
            batch = masks[start : start + sets_per_call]
            joined = MaskSamples(
                torch.cat([m.masked for m in batch]),
                torch.cat([m.loss_weights for m in batch]),
                torch.cat([m.prompt_masked for m in batch]),
                batch[0].normalizer_mask,
            )
            logps = masked_token_logps(policy, rollouts, joined).split(len(batch[0].masked))
            sums += [estimator.combine(lp, m, no_advantages).sum(1) for lp, m in zip(logps, batch, strict=True)]
    return torch.stack(sums).double().cpu()


def variances(
    policy: Policy, rollouts: Rollouts, estimator: Elbo, draws: int, generator: torch.Generator
) -> Float[Tensor, " B"]:
    """Sample variance of the summed estimate of each rollout over `draws` independent estimates."""
    return torch.cat(
        [
            estimates(policy, half, fitted.sample_masks(half, draws, generator), fitted).var(0, correction=1)
            for half, fitted in cross_fitted(policy, rollouts, estimator, generator)
        ]
    )


def cross_fitted(
    policy: Policy, rollouts: Rollouts, estimator: Elbo, generator: torch.Generator, draws: int = 4
) -> list[tuple[Rollouts, Elbo]]:
    """Both halves of the rollouts, each with the estimator fitted to the other half; training fits to earlier steps."""
    if estimator.importance_sampling != "fitted" or len(rollouts) < 2:
        return [(rollouts, estimator)]
    half = len(rollouts) // 2
    halves = rollouts[:half], rollouts[half:]
    return [
        (rows, estimator.fit(_loss_history(policy, others, draws, generator)))
        for rows, others in (halves, halves[::-1])
    ]


def _loss_history(policy: Policy, rollouts: Rollouts, draws: int, generator: torch.Generator) -> LossHistory:
    history, pilot = LossHistory(), Elbo(num_samples=16, masks="exact", timestep_sampling="stratified")
    with torch.inference_mode():
        for masks in pilot.sample_masks(rollouts, draws, generator):
            history.update(loss_by_mask_ratio(masked_token_logps(policy, rollouts, masks), masks))
    return history


def split_variance(
    policy: Policy,
    rollouts: Rollouts,
    estimator: Elbo,
    num_ratios: int,
    masks_per_ratio: int,
    generator: torch.Generator,
) -> list[Split]:
    """Eq. 14 for one mask sample of each rollout: `masks_per_ratio` masks at each of `num_ratios` mask ratios."""
    halves = cross_fitted(policy, rollouts, estimator, generator)
    if len(halves) > 1:
        return [
            split
            for half, fitted in halves
            for split in split_variance(policy, half, fitted, num_ratios, masks_per_ratio, generator)
        ]
    count, length = rollouts.completion_ids.shape
    single = replace(estimator, num_samples=1, timestep_sampling="independent", subsets="independent")
    u = torch.rand(num_ratios, 1, count, generator=generator, dtype=torch.float64)
    masks = [
        single.masks_at(rollouts, ratio_u, torch.rand(1, count, length, generator=generator))
        for ratio_u in u
        for _ in range(masks_per_ratio)
    ]
    values = estimates(policy, rollouts, masks, single).view(num_ratios, masks_per_ratio, count)
    return [variance_split(values[:, :, row]) for row in range(count)]


@dataclass(frozen=True)
class Summary:
    """The variances of several rollouts: their mean with a 95 % interval, and their quartiles."""

    mean: float
    low: float
    high: float
    median: float
    quartiles: tuple[float, float]


def summary(values: Float[Tensor, " B"], resamples: int = 2000) -> Summary:
    """The interval is a percentile bootstrap over the rollouts."""
    values = values.double()
    samples = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(0))
    means = values[samples].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    lower, middle, upper = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Summary(float(values.mean()), low, high, middle, (lower, upper))


def ratio_interval(
    numerator: Float[Tensor, " B"], denominator: Float[Tensor, " B"], resamples: int = 2000
) -> tuple[float, float, float]:
    """The ratio of two means over the same rollouts, with its 95 % interval from a paired bootstrap."""
    samples = torch.randint(len(numerator), (resamples, len(numerator)), generator=torch.Generator().manual_seed(0))
    ratios = numerator.double()[samples].mean(1) / denominator.double()[samples].mean(1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(numerator.double().mean() / denominator.double().mean()), low, high


def per_token(variance: Float[Tensor, " B"], rollouts: Rollouts) -> Float[Tensor, " B"]:
    """The variance of the estimate per token of `loss_mask`: V / n^2."""
    return variance / rollouts.loss_mask.sum(1).clamp(min=1).cpu().double().square()


def with_sampled_mask(rollouts: Rollouts, sampled_mask: Bool[Tensor, "B L"]) -> Rollouts:
    """The same rollouts with other anchors: standard masks on pruned rollouts, or pruned masks on standard rollouts."""
    return replace(rollouts, sampled_mask=sampled_mask.to(rollouts.completion_ids.device))


def leave_one_out_control(
    draws: Float[Tensor, "K B"], u: Float[Tensor, "K B"], num_generations: int, num_bins: int = 4
) -> Float[Tensor, "K B"]:
    """Single-draw estimates minus the part that the mask ratio explains in the other rollouts of the group.

    draw - g(u) + mean of g, with g a step function over `num_bins` bins of the uniform number `u` of the mask ratio.
    g is fitted to the other members of the group, so it is independent of the rollout's own draws: unbiased. Only the
    values change. g has no gradient and cancels in a ratio with shared masks, so training cannot use it.
    """
    bins = (u * num_bins).long().clamp(max=num_bins - 1)
    member = torch.nn.functional.one_hot(bins, num_bins).to(draws.dtype)  # K x B x bins
    sums, counts = (member * draws[:, :, None]).sum(0), member.sum(0)  # B x bins
    sums, counts = sums.view(-1, num_generations, num_bins), counts.view(-1, num_generations, num_bins)
    other_sums, other_counts = sums.sum(1, keepdim=True) - sums, counts.sum(1, keepdim=True) - counts
    overall = other_sums.sum(2, keepdim=True) / other_counts.sum(2, keepdim=True).clamp(min=1)
    fitted = torch.where(other_counts > 0, other_sums / other_counts.clamp(min=1), overall).flatten(0, 1)  # B x bins
    return draws - (member * fitted).sum(2) + fitted.mean(1)
