"""The ELBO estimator on a model whose exact ELBO is log p."""

import itertools
import math

import pytest
import torch

from stipule.errors import RecipeError
from stipule.estimators.elbo import Elbo
from stipule.estimators.token_logps import estimate_logps, masked_token_logps
from stipule.objectives.grpo import Grpo
from stipule.objectives.loss_terms import token_ratio
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.types import LossInputs
from tests.toys import ConsistentPolicy, anchored, prompts, response, subsets

LENGTH, VOCABULARY = 5, 3
COMPLETION = (1, 0, 2, 2, 1)


@pytest.fixture(scope="module")
def toy():
    return ConsistentPolicy(LENGTH, VOCABULARY)


def weight_of(size: int, n: int, t_min: float) -> float:
    """Mean of 1[M masked] / t over t ~ U(t_min, 1) for a set M of this size: the integral by Gauss-Legendre."""
    import numpy

    nodes, weights = numpy.polynomial.legendre.leggauss(64)
    t = t_min + (1 - t_min) * (nodes + 1) / 2
    return float((weights / 2 * t ** (size - 1) * (1 - t) ** (n - size)).sum())


def enumerated(toy, row, sampled_mask, t_min=0.0):
    """Eq. 3 by brute force over all masks of the sampled positions."""
    positions = [i for i, f in enumerate(sampled_mask) if f]
    return sum(toy.masked_sum(row, m) * weight_of(len(m), len(positions), t_min) for m in subsets(positions)())


def test_the_enumerated_elbo_of_a_consistent_model_is_log_p(toy):
    for row in itertools.islice(itertools.product(range(VOCABULARY), repeat=LENGTH), 0, None, 17):
        assert enumerated(toy, row, [True] * LENGTH) == pytest.approx(toy.log_p(row), abs=1e-9)


@pytest.mark.parametrize("sampled_mask", [[True] * 5, [True, False, True, True, False]])
@pytest.mark.parametrize(("masks", "t_min"), [("exact", 0.0), ("bernoulli", 0.1), ("bernoulli", 0.001)])
def test_estimates_average_to_the_enumerated_elbo(toy, sampled_mask, masks, t_min):
    num_samples = 6000
    estimator = Elbo(num_samples=num_samples, masks=masks, t_min=t_min)
    one = response([list(COMPLETION)], sampled_mask=[sampled_mask])
    (mask_samples,) = estimator.sample_masks(one, 1, torch.Generator().manual_seed(3))
    single = (
        (masked_token_logps(toy, one, mask_samples) * mask_samples.loss_weights * num_samples).sum(2)[:, 0].double()
    )
    target = enumerated(toy, COMPLETION, sampled_mask, t_min)
    if t_min == 0:
        fixed = tuple(not f for f in sampled_mask)
        assert target == pytest.approx(toy.log_p(COMPLETION, fixed), abs=1e-9)
    error = float(single.std()) / math.sqrt(num_samples)
    assert abs(float(single.mean()) - target) < 4 * error
    assert error < 0.05 * abs(target)  # so the bound above is tight


def test_only_tokens_of_the_loss_mask_are_masked_or_weighted():
    one = response(
        [list(COMPLETION)] * 4,
        sampled_mask=[[True, False] * 2 + [True]] * 4,
        completion_mask=[[True] * 3 + [False] * 2] * 4,
    )
    for masks in ("exact", "bernoulli"):
        for mask_samples in Elbo(num_samples=200, masks=masks).sample_masks(one, 3, torch.Generator().manual_seed(0)):
            assert not bool((mask_samples.masked & ~one.loss_mask).any())
            assert torch.equal(mask_samples.loss_weights != 0, mask_samples.masked)
            assert not bool(mask_samples.prompt_masked.any())


def test_exact_masks_have_a_uniform_number_of_masked_tokens():
    one = response([list(COMPLETION)])
    (mask_samples,) = Elbo(num_samples=4000, masks="exact").sample_masks(one, 1, torch.Generator().manual_seed(0))
    counts = mask_samples.masked.sum(2)[:, 0]
    assert counts.min() == 1
    assert counts.max() == LENGTH
    assert torch.bincount(counts)[1:].tolist() == pytest.approx([800] * 5, abs=120)  # k is uniform
    weight = mask_samples.loss_weights.amax(2)[:, 0]
    assert torch.allclose(weight, LENGTH / (4000 * counts.float()))


def test_a_response_without_sampled_tokens_has_log_probability_zero():
    one = response([list(COMPLETION)], sampled_mask=[[False] * 5])
    for masks in ("exact", "bernoulli"):
        (mask_samples,) = Elbo(masks=masks).sample_masks(one, 1, torch.Generator().manual_seed(0))
        assert not bool(mask_samples.masked.any())
        assert bool(mask_samples.loss_weights.isfinite().all())


def test_anchors_carry_exactly_no_gradient(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=12, block_length=6, temperature=1.0)
    anchors = anchored(policy, 3, 12, 4)
    rollouts = sampler(policy, prompts(policy), sampler.sample_noise(3, torch.Generator().manual_seed(0)), anchors)
    estimator = Elbo(num_samples=4)
    (mask_samples,) = estimator.sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    advantage = torch.tensor([1.0, -1.0, 0.5])
    new = estimate_logps(policy, rollouts, mask_samples, estimator, advantage).detach().requires_grad_()
    loss = Grpo(beta=0.1)(LossInputs(new, new.detach() - 0.05, new.detach() + 0.1, advantage, rollouts.loss_mask))
    loss.value.backward()
    assert bool((new.grad[~rollouts.sampled_mask] == 0).all())
    assert bool((new[~rollouts.sampled_mask] == 0).all())
    assert bool((new.grad[rollouts.loss_mask & mask_samples.masked.any(0)] != 0).any())


def test_the_ratio_is_exactly_one_with_unchanged_weights(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=12, block_length=6, temperature=1.0)
    rollouts = sampler(policy, prompts(policy), sampler.sample_noise(3, torch.Generator().manual_seed(0)))
    estimator = Elbo()
    (mask_samples,) = estimator.sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        old = estimate_logps(policy, rollouts, mask_samples, estimator, torch.zeros(3))
    new = estimate_logps(policy, rollouts, mask_samples, estimator, torch.zeros(3))
    assert bool((token_ratio(new, old) == 1).all())
    assert bool((new != 0).any())


@pytest.mark.parametrize(("key", "value"), [("num_samples", 0), ("t_min", 1.0), ("t_min", -0.1)])
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(RecipeError, match=f"estimator.{key} is"):
        Elbo(**{key: value})
