"""The theorems where their assumptions hold, and a counterexample for each assumption that fails."""

import itertools
import math

import pytest
import torch

from stipule.estimators.elbo import Elbo
from stipule.estimators.mean_log_prob import MeanLogProb
from stipule.evaluation.theory import (
    bias_bound,
    context_free_split,
    exponential_bias,
    exponential_variance,
    mean_log_prob_split,
    pruned_calls,
    spatial_ratio,
    surrogate_lipschitz,
    variance_bound,
    variance_split,
)
from stipule.objectives.loss_terms import clipped_surrogate
from stipule.rollouts.schedule import Cutoff, num_anchors, unmask_schedule
from tests.toys import ConsistentPolicy, response, subsets

LOGP = torch.tensor([-0.1, -0.2, -0.7, -1.5, -0.4, -2.0, -0.05, -1.0])
N = len(LOGP)


def context_free(estimator, logp=LOGP, rows=200_000, sampled_mask=None):
    """Single-draw estimates of a policy whose log-probabilities are `logp` under every mask."""
    rollouts = response([[0] * len(logp)] * rows, sampled_mask=None if sampled_mask is None else [sampled_mask] * rows)
    (masks,) = estimator.sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    return (masks.loss_weights * logp).sum((0, 2)).double()


# Theorem 4.1


@pytest.mark.parametrize(("gamma", "cutoff"), list(itertools.product((0.0, 0.05, 0.1, 0.2), repeat=2)))
@pytest.mark.parametrize(("length", "steps", "block"), [(256, 128, 32), (256, 256, 256), (64, 32, 16), (16, 16, 16)])
def test_the_schedule_costs_what_theorem_4_1_says(gamma, cutoff, length, steps, block):
    num_fixed, num_blocks = num_anchors(gamma, length), length // block
    masks_per_block = tuple(
        block - (num_fixed * (b + 1) // num_blocks - num_fixed * b // num_blocks) for b in range(num_blocks)
    )
    nfe = unmask_schedule(masks_per_block, length, steps, block, Cutoff(cutoff, "global")).nfe
    assert abs(nfe - pruned_calls(steps, gamma, cutoff)) <= 1.5  # rounding of anchors, cutoff and last call


def test_theorem_4_1_fails_for_a_cutoff_in_small_blocks():
    nfe = unmask_schedule((32,) * 8, 256, 128, 32, Cutoff(0.05, "block")).nfe
    assert nfe == 136  # in each of 8 blocks 31 tokens at 2 a call, and one call for the last: more than unpruned
    assert pruned_calls(128, 0.0, 0.05) < 123


# Eq. 13 to 15, theorem 4.3


@pytest.mark.parametrize(("masks", "t_min"), [("bernoulli", 0.1), ("exact", 0.0), ("rao_blackwell", 0.0)])
def test_the_closed_forms_match_the_measured_variance(masks, t_min):
    estimates = context_free(Elbo(num_samples=1, masks=masks, t_min=t_min))
    split = context_free_split(LOGP, masks, t_min)
    assert float(estimates.var()) == pytest.approx(split.total, rel=0.03)
    assert float(estimates.mean()) == pytest.approx(float(LOGP.sum()), rel=0.01)


def test_the_split_recovers_both_parts():
    generator = torch.Generator().manual_seed(0)
    ratio_effect = torch.randn(20_000, 1, generator=generator)
    split = variance_split(3 * ratio_effect + 2 * torch.randn(20_000, 3, generator=generator))
    assert (split.time, split.noise) == (pytest.approx(9, rel=0.05), pytest.approx(4, rel=0.05))


def test_assumption_4_2_fails_without_a_minimum_mask_ratio():
    variances = [context_free_split(LOGP, "bernoulli", t).total for t in (1e-2, 1e-4, 1e-6, 1e-8)]
    steps = [b - a for a, b in itertools.pairwise(variances)]
    # It grows as ln(1/t_min) without bound, by the same amount for every factor of 100.
    assert steps == pytest.approx([math.log(100) * float(LOGP.square().sum())] * 3, rel=0.1)
    assert context_free_split(LOGP, "bernoulli", 0.0).total == math.inf


@pytest.mark.parametrize("anchors", [(), (1,), (0, 5), (3, 4, 6)])
def test_the_split_of_the_authors_score_is_that_of_all_masks(anchors):
    is_anchor = torch.tensor([i in anchors for i in range(N)])
    by_size = []
    for size in range(1, N + 1):
        scores = [
            sum(float(LOGP[i]) for i in members if i not in anchors) / N
            for members in itertools.combinations(range(N), size)
        ]
        by_size.append((sum(scores) / len(scores), sum(x * x for x in scores) / len(scores)))
    means = [mean for mean, _ in by_size]
    time = sum(m * m for m in means) / N - (sum(means) / N) ** 2
    noise = sum(square - mean * mean for mean, square in by_size) / N
    split = mean_log_prob_split(LOGP, is_anchor)
    assert (split.time, split.noise) == (pytest.approx(time, rel=1e-5), pytest.approx(noise, rel=1e-5))


def test_the_estimator_of_the_authors_score_has_this_variance():
    sampled = torch.tensor([i not in (0, 5) for i in range(N)])
    rollouts = response([[0] * N] * 100_000, sampled_mask=[sampled.tolist()] * 100_000)
    (masks,) = MeanLogProb(num_samples=1).sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    scores = (masks.loss_weights * LOGP * masks.masked).sum((0, 2)) / N  # a visible token has log-probability 0
    assert float(scores.var()) == pytest.approx(mean_log_prob_split(LOGP, ~sampled).total, rel=0.02)


def test_anchors_lower_the_time_part_of_the_authors_score_and_change_none_of_eq_3():
    """All tokens alike: eq. 3 with an exact count has no variance at all, with anchors or without."""
    logp = torch.full((20,), -1.0)
    anchors = torch.arange(20) < 1  # gamma = 0.05
    ratio = mean_log_prob_split(logp, anchors).time / mean_log_prob_split(logp, torch.zeros(20).bool()).time
    assert ratio == pytest.approx((1 - 1 / 20) ** 2)
    assert context_free_split(logp, "exact").total == context_free_split(logp[1:], "exact").total == 0.0


def test_eq_15_holds_in_the_mean_over_random_anchors_of_a_context_free_policy():
    unpruned = context_free_split(LOGP, "bernoulli", 0.1).noise
    for fixed in (1, 2, 4):
        noises = [
            context_free_split(LOGP[list(sampled)], "bernoulli", 0.1).noise
            for sampled in itertools.combinations(range(N), N - fixed)
        ]
        assert sum(noises) / len(noises) / unpruned == pytest.approx(spatial_ratio(N, fixed), rel=1e-6)


def test_eq_15_fails_for_confident_anchors():
    confident = LOGP.argsort(descending=True)
    pruned = context_free_split(LOGP[confident[2:]], "bernoulli", 0.1).noise
    assert pruned / context_free_split(LOGP, "bernoulli", 0.1).noise > 0.99 > spatial_ratio(N, 2)


def exact_variance(toy, row, sampled_mask):
    """Variance of one draw with an exact count, by enumeration."""
    positions = [i for i, f in enumerate(sampled_mask) if f]
    n = len(positions)
    moments = [0.0, 0.0]
    for masked in subsets(positions)():
        k = len(masked)
        probability = 1 / (n * math.comb(n, k))
        value = n / k * toy.masked_sum(row, masked)
        moments[0] += probability * value
        moments[1] += probability * value**2
    return moments[1] - moments[0] ** 2


def test_an_anchor_can_raise_the_variance_against_theorem_4_3():
    toy = ConsistentPolicy(4, 3, seed=1)
    higher = lower = 0
    for row in itertools.product(range(3), repeat=4):
        unpruned = exact_variance(toy, row, [True] * 4)
        for fixed in range(4):
            pruned = exact_variance(toy, row, [i != fixed for i in range(4)])
            higher, lower = higher + (pruned > unpruned), lower + (pruned < unpruned)
    assert lower > higher > 0  # usually lower, not always


# Eq. 16 to 18, theorem 4.4


BOUNDED = [
    torch.linspace(-1, 1, 1001),
    torch.tensor([-1.0, 1.0]),
    torch.tensor([-1.0] * 99 + [1.0]),
    torch.tensor([-1.0] + [1.0] * 99),
    0.9 + 0.1 * torch.linspace(-1, 1, 101),
]


@pytest.mark.parametrize("values", BOUNDED)
def test_the_exponential_of_a_bounded_variable_satisfies_eq_16_and_17(values):
    x = values.double()
    bound, variance = float(x.abs().max()), float(x.var(correction=0))
    assert abs(float(x.exp().mean()) - math.exp(float(x.mean()))) <= exponential_bias(bound, variance)
    assert float(x.exp().var(correction=0)) <= exponential_variance(bound, variance)


def test_eq_17_is_nearly_tight():
    x = 1 + 1e-3 * torch.linspace(-1, 1, 101).double()
    assert float(x.exp().var(correction=0)) > 0.99 * exponential_variance(1.0, float(x.var(correction=0)))


def test_the_clipped_surrogate_is_lipschitz():
    ratio = torch.linspace(0, 3, 601)
    for advantage in (-2.0, -0.5, 0.7, 3.0):
        gain = clipped_surrogate(ratio, torch.full_like(ratio, advantage), 0.2, 0.2)
        slope = (gain.diff() / ratio.diff()).abs().max()
        assert float(slope) <= surrogate_lipschitz(advantage) * 1.001
        assert float(slope) == pytest.approx(abs(advantage), rel=1e-3)  # the bound is reached


def differences(t_min, rows=200_000, scale=0.05, shared_masks=True):
    """dB of one draw between two context-free policies, with shared or independent masks."""
    rollouts = response([[0] * N] * rows)
    estimator = Elbo(num_samples=1, masks="bernoulli", t_min=t_min)
    (masks,) = estimator.sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    (other_masks,) = estimator.sample_masks(rollouts, 1, torch.Generator().manual_seed(1))
    new = LOGP + scale * torch.sin(torch.arange(N) * 2.0)
    old_masks = masks if shared_masks else other_masks
    return ((masks.loss_weights * new).sum((0, 2)) - (old_masks.loss_weights * LOGP).sum((0, 2))).double()


@pytest.mark.parametrize("advantage", [1.5, -0.8])
def test_theorem_4_4_bounds_the_loss_where_the_difference_is_bounded(advantage):
    sampled = differences(t_min=0.2)
    bound, variance, mean = float(sampled.abs().max()), float(sampled.var()), float(sampled.mean())

    def loss(x):
        ratio = torch.as_tensor(x, dtype=torch.float64).exp()
        return clipped_surrogate(ratio, torch.full_like(ratio, advantage), 0.2, 0.2)

    assert 0 < abs(float(loss(sampled).mean() - loss(mean))) <= bias_bound(advantage, bound, variance)
    assert 0 < float(loss(sampled).var()) <= variance_bound(advantage, bound, variance)


def test_theorem_4_4_has_no_bound_for_the_unbounded_estimator():
    # K is the largest difference: it grows as 1/t_min, and its exponential with it.
    largest = [float(differences(t_min=t, rows=400_000).abs().max()) for t in (1e-1, 1e-2, 1e-3)]
    assert largest[1] > 3 * largest[0]
    assert largest[2] > 3 * largest[1]


def test_shared_masks_make_the_difference_zero():
    assert float(differences(0.1, scale=0.0).abs().max()) == 0.0
    independent = differences(0.1, scale=0.0, shared_masks=False)
    twice = 2 * context_free_split(LOGP, "bernoulli", 0.1).total
    assert float(independent.var()) == pytest.approx(twice, rel=0.05)  # only this variance falls by theorem 4.3
