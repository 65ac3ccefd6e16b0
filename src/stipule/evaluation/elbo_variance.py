"""The variance of ELBO estimates, measured (eq. 13-15, figure 3): draws, their split, and what an update adds."""

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

# Every form of the ELBO that is worth its model calls; pairs need an even number of them.
ESTIMATORS = {
    "1/t, as in the paper": Elbo(masks="bernoulli"),
    "1/t, t >= 0.15": Elbo(masks="bernoulli", t_min=0.15),
    "Rao-Blackwell": Elbo(masks="rao_blackwell"),
    "exact count": Elbo(masks="exact"),
    "low_discrepancy": Elbo(masks="exact", timestep_sampling="low_discrepancy"),
    "systematic, circular": Elbo(masks="exact", timestep_sampling="low_discrepancy", subsets="cyclic"),
    "stratified": Elbo(masks="exact", timestep_sampling="stratified"),
    "jittered, circular": Elbo(masks="exact", timestep_sampling="stratified", subsets="cyclic"),
    "fitted": Elbo(masks="exact", importance_sampling="fitted"),
    "fitted, systematic, circular": Elbo(
        masks="exact", importance_sampling="fitted", timestep_sampling="low_discrepancy", subsets="cyclic"
    ),
    "fitted, jittered, circular": Elbo(
        masks="exact", importance_sampling="fitted", timestep_sampling="stratified", subsets="cyclic"
    ),
    "complement pair (ESPO)": Elbo(
        num_samples=2, masks="rao_blackwell", timestep_sampling="antithetic", subsets="cyclic"
    ),
    "antithetic pair": Elbo(num_samples=2, masks="exact", timestep_sampling="antithetic", subsets="cyclic"),
}


def with_calls(form: Elbo, calls: int) -> Elbo | None:
    """The form at this many model calls per estimate; None where it comes in pairs and the number is odd."""
    return None if form.timestep_sampling == "antithetic" and calls % 2 else replace(form, num_samples=calls)


def estimates(
    policy: Policy, responses: Rollouts, views: Sequence[MaskSamples], estimator: Estimator, rows: int = 512
) -> Float[Tensor, "R B"]:
    """The summed score of every response under each of R lists of views, `rows` of them in a model call."""
    each = max(1, rows // (len(responses) * len(views[0].masked)))
    nothing = torch.zeros(len(responses), device=responses.completion_ids.device)
    found = []
    with torch.inference_mode():
        for start in range(0, len(views), each):
            part = views[start : start + each]
            together = MaskSamples(
                torch.cat([v.masked for v in part]),
                torch.cat([v.loss_weights for v in part]),
                torch.cat([v.prompt_masked for v in part]),
                part[0].normalizer_mask,
            )
            logp = masked_token_logps(policy, responses, together).split(len(part[0].masked))
            found += [estimator.combine(lp, v, nothing).sum(1) for lp, v in zip(logp, part, strict=True)]
    return torch.stack(found).double().cpu()


def variances(
    policy: Policy, responses: Rollouts, form: Elbo, draws: int, generator: torch.Generator
) -> Float[Tensor, " B"]:
    """Sample variance of the summed estimate of each response over `draws` independent estimates."""
    return torch.cat(
        [
            estimates(policy, rows, fitted.sample_masks(rows, draws, generator), fitted).var(0, correction=1)
            for rows, fitted in cross_fitted(policy, responses, form, generator)
        ]
    )


def cross_fitted(
    policy: Policy, responses: Rollouts, form: Elbo, generator: torch.Generator, draws: int = 4
) -> list[tuple[Rollouts, Elbo]]:
    """Halves of the responses, each with the form that the other half fits, as training fits it to earlier steps."""
    if form.importance_sampling != "fitted" or len(responses) < 2:
        return [(responses, form)]
    half = len(responses) // 2
    halves = responses[:half], responses[half:]
    return [(rows, form.fit(_seen(policy, others, draws, generator))) for rows, others in (halves, halves[::-1])]


def _seen(policy: Policy, responses: Rollouts, draws: int, generator: torch.Generator) -> LossHistory:
    seen, pilot = LossHistory(), Elbo(num_samples=16, masks="exact", timestep_sampling="stratified")
    with torch.inference_mode():
        for views in pilot.sample_masks(responses, draws, generator):
            seen.update(loss_by_mask_ratio(masked_token_logps(policy, responses, views), views))
    return seen


def split_variance(
    policy: Policy, responses: Rollouts, form: Elbo, levels: int, masks: int, generator: torch.Generator
) -> list[Split]:
    """Eq. 14 for a single draw of each response: `masks` masks at each of `levels` levels."""
    halves = cross_fitted(policy, responses, form, generator)
    if len(halves) > 1:
        return [
            split for rows, fitted in halves for split in split_variance(policy, rows, fitted, levels, masks, generator)
        ]
    count, length = responses.completion_ids.shape
    single = replace(form, num_samples=1, timestep_sampling="independent", subsets="independent")
    u = torch.rand(levels, 1, count, generator=generator, dtype=torch.float64)
    views = [
        single.masks_at(responses, level, torch.rand(1, count, length, generator=generator))
        for level in u
        for _ in range(masks)
    ]
    found = estimates(policy, responses, views, single).view(levels, masks, count)
    return [variance_split(found[:, :, row]) for row in range(count)]


@dataclass(frozen=True)
class Summary:
    """A variance over responses: its mean with a 95 % interval, and its quartiles."""

    mean: float
    low: float
    high: float
    median: float
    quartiles: tuple[float, float]


def summary(values: Float[Tensor, " B"], resamples: int = 2000) -> Summary:
    """Percentile bootstrap over the responses; the quartiles are those of the responses themselves."""
    values = values.double()
    picks = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(0))
    means = values[picks].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    lower, middle, upper = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Summary(float(values.mean()), low, high, middle, (lower, upper))


def ratio_interval(
    numerator: Float[Tensor, " B"], denominator: Float[Tensor, " B"], resamples: int = 2000
) -> tuple[float, float, float]:
    """mean / mean over the same responses with its 95 % interval: a paired bootstrap."""
    picks = torch.randint(len(numerator), (resamples, len(numerator)), generator=torch.Generator().manual_seed(0))
    ratios = numerator.double()[picks].mean(1) / denominator.double()[picks].mean(1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(numerator.double().mean() / denominator.double().mean()), low, high


def per_token(variance: Float[Tensor, " B"], responses: Rollouts) -> Float[Tensor, " B"]:
    """The variance of the estimate per scored token: V / n^2."""
    return variance / responses.loss_mask.sum(1).clamp(min=1).cpu().double().square()


def with_sampled_mask(responses: Rollouts, free: Bool[Tensor, "B L"]) -> Rollouts:
    """The same responses scored with other anchors: standard masks on pruned rollouts, and the other way round."""
    return replace(responses, sampled_mask=free.to(responses.completion_ids.device))


def leave_one_out_control(
    draws: Float[Tensor, "K B"], share: Float[Tensor, "K B"], group: int, bins: int = 4
) -> Float[Tensor, "K B"]:
    """Single-draw estimates with the part that the other responses of the group explain by the level taken out.

    draw - g(level) + mean of g, g a step function over `bins` of the uniform level (`share`, in [0, 1]), fitted on the
    other members of the group and so independent of the response's own draws: unbiased. It changes values only: it
    holds no gradient, and with shared masks it cancels in a ratio, so it serves reading B, not training on it.
    """
    place = (share * bins).long().clamp(max=bins - 1)
    member = torch.nn.functional.one_hot(place, bins).to(draws.dtype)  # K x B x bins
    sums, counts = (member * draws[:, :, None]).sum(0), member.sum(0)  # B x bins
    sums, counts = sums.view(-1, group, bins), counts.view(-1, group, bins)
    others, many = sums.sum(1, keepdim=True) - sums, counts.sum(1, keepdim=True) - counts
    overall = others.sum(2, keepdim=True) / many.sum(2, keepdim=True).clamp(min=1)
    fitted = torch.where(many > 0, others / many.clamp(min=1), overall).flatten(0, 1)  # B x bins
    return draws - (member * fitted).sum(2) + fitted.mean(1)
