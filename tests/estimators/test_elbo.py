"""The ELBO estimator against a model whose ELBO is known: log p, to the last digit."""

import itertools
import math

import pytest
import torch

from stipule.errors import RecipeError
from stipule.estimators.elbo import Elbo
from stipule.estimators.token_logps import masked_token_logps, estimate_logps
from stipule.objectives.grpo import Grpo
from stipule.objectives.ratio import token_ratio
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.toys import ConsistentPolicy, anchored, prompts, response, subsets
from stipule.types import LossInputs

LENGTH, WORDS = 5, 3
ROW = (1, 0, 2, 2, 1)


@pytest.fixture(scope="module")
def toy():
    return ConsistentPolicy(LENGTH, WORDS)


def weight_of(size: int, n: int, t_min: float) -> float:
    """Mean of 1[M hidden] / t over t ~ U(t_min, 1) for a set M of this size: the integral by Gauss-Legendre."""
    import numpy

    nodes, weights = numpy.polynomial.legendre.leggauss(64)
    t = t_min + (1 - t_min) * (nodes + 1) / 2
    return float((weights / 2 * t ** (size - 1) * (1 - t) ** (n - size)).sum())


def enumerated(toy, row, free, t_min=0.0):
    """Eq. 3 by brute force over all masks of the free positions."""
    positions = [i for i, f in enumerate(free) if f]
    return sum(toy.masked_sum(row, m) * weight_of(len(m), len(positions), t_min) for m in subsets(positions)())


def test_the_enumerated_elbo_of_a_consistent_model_is_log_p(toy):
    for row in itertools.islice(itertools.product(range(WORDS), repeat=LENGTH), 0, None, 17):
        assert enumerated(toy, row, [True] * LENGTH) == pytest.approx(toy.log_p(row), abs=1e-9)


@pytest.mark.parametrize("free", [[True] * 5, [True, False, True, True, False]])
@pytest.mark.parametrize(("masks", "t_min"), [("exact", 0.0), ("bernoulli", 0.1), ("bernoulli", 0.001)])
def test_estimates_average_to_the_enumerated_elbo(toy, free, masks, t_min):
    draws = 6000
    estimator = Elbo(num_samples=draws, masks=masks, t_min=t_min)
    one = response([list(ROW)], free=[free])
    (views,) = estimator.sample_masks(one, 1, torch.Generator().manual_seed(3))
    single = (masked_token_logps(toy, one, views) * views.loss_weights * draws).sum(2)[:, 0].double()
    target = enumerated(toy, ROW, free, t_min)
    if t_min == 0:
        fixed = tuple(not f for f in free)
        assert target == pytest.approx(toy.log_p(ROW, fixed), abs=1e-9)
    error = float(single.std()) / math.sqrt(draws)
    assert abs(float(single.mean()) - target) < 4 * error
    assert error < 0.05 * abs(target)  # the bound above says something


def test_only_scored_tokens_are_hidden_or_count():
    one = response([list(ROW)] * 4, free=[[True, False] * 2 + [True]] * 4, live=[[True] * 3 + [False] * 2] * 4)
    for masks in ("exact", "bernoulli"):
        for views in Elbo(num_samples=200, masks=masks).sample_masks(one, 3, torch.Generator().manual_seed(0)):
            assert not bool((views.masked & ~one.loss_mask).any())
            assert torch.equal(views.loss_weights != 0, views.masked)
            assert not bool(views.prompt_masked.any())


def test_every_view_of_an_exact_draw_hides_its_own_count():
    one = response([list(ROW)])
    (views,) = Elbo(num_samples=4000, masks="exact").sample_masks(one, 1, torch.Generator().manual_seed(0))
    counts = views.masked.sum(2)[:, 0]
    assert counts.min() == 1
    assert counts.max() == LENGTH
    assert torch.bincount(counts)[1:].tolist() == pytest.approx([800] * 5, abs=120)  # k is uniform
    weight = views.loss_weights.amax(2)[:, 0]
    assert torch.allclose(weight, LENGTH / (4000 * counts.float()))


def test_a_response_without_scored_tokens_scores_zero():
    one = response([list(ROW)], free=[[False] * 5])
    for masks in ("exact", "bernoulli"):
        (views,) = Elbo(masks=masks).sample_masks(one, 1, torch.Generator().manual_seed(0))
        assert not bool(views.masked.any())
        assert bool(views.loss_weights.isfinite().all())


def test_anchors_carry_exactly_no_gradient(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=12, block_length=6, temperature=1.0)
    placed = anchored(policy, 3, 12, 4)
    rolled = sampler(policy, prompts(policy), sampler.sample_noise(3, torch.Generator().manual_seed(0)), placed)
    estimator = Elbo(num_samples=4)
    (views,) = estimator.sample_masks(rolled, 1, torch.Generator().manual_seed(0))
    advantage = torch.tensor([1.0, -1.0, 0.5])
    new = estimate_logps(policy, rolled, views, estimator, advantage).detach().requires_grad_()
    loss = Grpo(beta=0.1)(LossInputs(new, new.detach() - 0.05, new.detach() + 0.1, advantage, rolled.loss_mask))
    loss.value.backward()
    assert bool((new.grad[~rolled.sampled_mask] == 0).all())
    assert bool((new[~rolled.sampled_mask] == 0).all())
    assert bool((new.grad[rolled.loss_mask & views.masked.any(0)] != 0).any())


def test_the_ratio_is_exactly_one_where_nothing_has_changed(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=12, block_length=6, temperature=1.0)
    rolled = sampler(policy, prompts(policy), sampler.sample_noise(3, torch.Generator().manual_seed(0)))
    estimator = Elbo()
    (views,) = estimator.sample_masks(rolled, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        old = estimate_logps(policy, rolled, views, estimator, torch.zeros(3))
    new = estimate_logps(policy, rolled, views, estimator, torch.zeros(3))
    assert bool((token_ratio(new, old) == 1).all())
    assert bool((new != 0).any())


@pytest.mark.parametrize(("key", "value"), [("samples", 0), ("t_min", 1.0), ("t_min", -0.1)])
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(RecipeError, match=f"estimator.{key} is"):
        Elbo(**{key: value})
