"""Measured variances compared with enumeration and closed forms."""

import itertools
import math

import pytest
import torch

from stipule.estimators.elbo import Elbo
from stipule.estimators.mask_samples import make_mask_samples
from stipule.evaluation.elbo_variance import (
    ESTIMATORS,
    estimates,
    leave_one_out_control,
    per_token,
    ratio_interval,
    split_variance,
    summary,
    variances,
    with_calls,
    with_sampled_mask,
)
from stipule.evaluation.gradient_variance import gradient_variances, surrogate_gradient
from stipule.evaluation.theory import context_free_split
from tests.toys import ConsistentPolicy, random_policy, response, subsets

ROW = (1, 0, 2, 2)


class ContextFree(ConsistentPolicy):
    """Every position has its own fixed distribution."""

    def conditional(self, row, position):
        return self.joint[(0,) * position + (slice(None),) + (0,) * (self.length - position - 1)].log_softmax(0)


@pytest.fixture(scope="module")
def toy():
    return ConsistentPolicy(4, 3, seed=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_measured_variance_matches_enumeration(toy):
    probabilities = [(m, 1 / (4 * math.comb(4, len(m)))) for m in subsets([0, 1, 2, 3])()]
    values = [(p, 4 / len(m) * toy.masked_sum(ROW, m)) for m, p in probabilities]
    mean = sum(p * v for p, v in values)
    exact = sum(p * v * v for p, v in values) - mean**2
    measured = variances(toy, response([list(ROW)]), Elbo(num_samples=1, masks="exact"), 4000, generator())
    assert float(measured) == pytest.approx(exact, rel=0.06)
    three_samples = variances(toy, response([list(ROW)]), Elbo(num_samples=3, masks="exact"), 3000, generator())
    assert float(three_samples) == pytest.approx(exact / 3, rel=0.1)


def test_time_and_noise_parts_match_enumeration(toy):
    per_count = {k: [] for k in range(1, 5)}
    for m in subsets([0, 1, 2, 3])():
        per_count[len(m)].append(4 / len(m) * toy.masked_sum(ROW, m))
    means = [sum(v) / len(v) for v in per_count.values()]
    noise = sum(sum((x - sum(v) / len(v)) ** 2 for x in v) / len(v) for v in per_count.values()) / 4
    time = sum((m - sum(means) / 4) ** 2 for m in means) / 4
    (split,) = split_variance(toy, response([list(ROW)]), Elbo(masks="exact"), 1500, 4, generator())
    assert split.noise == pytest.approx(noise, rel=0.1)
    assert split.time == pytest.approx(time, rel=0.15)


def test_a_context_free_policy_has_the_closed_form():
    policy = ContextFree(4, 3, seed=3)
    logp = torch.stack([policy.conditional(ROW, i)[ROW[i]] for i in range(4)])
    for masks, t_min in (("exact", 0.0), ("rao_blackwell", 0.0), ("bernoulli", 0.2)):
        measured = variances(
            policy, response([list(ROW)]), Elbo(num_samples=1, masks=masks, t_min=t_min), 6000, generator()
        )
        assert float(measured) == pytest.approx(context_free_split(logp, masks, t_min).total, rel=0.08)


def test_estimates_do_not_depend_on_the_batch_size(toy):
    rollouts = response([list(ROW), [0, 1, 1, 2]])
    masks = Elbo().sample_masks(rollouts, 7, generator())
    one, other = (estimates(toy, rollouts, masks, Elbo(), batch_size) for batch_size in (1, 4096))
    assert torch.allclose(one, other, atol=1e-6)
    assert one.shape == (7, 2)


def test_pairs_need_an_even_number_of_calls():
    for estimator in ESTIMATORS.values():
        for calls in (2, 3, 4):
            sized = with_calls(estimator, calls)
            is_odd_pair = estimator.timestep_sampling == "antithetic" and calls == 3
            assert sized is None if is_odd_pair else sized.num_samples == calls


def test_a_response_can_get_other_anchors_afterwards():
    sampled_mask = torch.tensor([[True, False, True, True]])
    pruned = with_sampled_mask(response([list(ROW)]), sampled_mask)
    assert torch.equal(pruned.loss_mask, sampled_mask)
    assert float(per_token(torch.tensor([18.0]), pruned)) == 2.0


def test_the_control_variate_is_unbiased_and_removes_the_time_part():
    num_generations, draws = 4, 3
    u = torch.rand(draws, 8000 * num_generations, generator=generator())
    noise = torch.randn(draws, 8000 * num_generations, generator=generator(1))
    estimate = -5 - 6 * u + 0.3 * noise  # the group shares a strong dependence on the mask ratio
    controlled = leave_one_out_control(estimate, u, num_generations)
    assert float(controlled.mean()) == pytest.approx(-8, abs=0.02)
    assert float(controlled.mean(0).var()) < 0.6 * float(estimate.mean(0).var())


def test_summary_and_ratio_of_known_values():
    values = torch.linspace(1, 3, 101)
    result = summary(values)
    assert (result.mean, result.median) == (pytest.approx(2), pytest.approx(2))
    assert result.low < 2 < result.high
    ratio, low, high = ratio_interval(values * 0.5, values)
    assert (ratio, low, high) == (pytest.approx(0.5),) * 3


def test_the_variance_of_the_gradient_matches_enumeration():
    policy = random_policy()
    policy.model.requires_grad_(True)
    rollouts = response([[5, 6, 7]])
    estimator, advantages = Elbo(num_samples=1, masks="exact"), torch.tensor([2.0])
    gradients, probabilities = [], []
    for flags in itertools.product((False, True), repeat=3):
        count = sum(flags)
        if count:
            masked = torch.tensor(flags).view(1, 1, 3)
            masks = make_mask_samples(rollouts, masked, 3 / count * masked.float())
            gradients.append(surrogate_gradient(policy, rollouts, masks, estimator, advantages))
            probabilities.append(1 / 3 / math.comb(3, count))
    gradient, probability = torch.stack(gradients).double(), torch.tensor(probabilities, dtype=torch.float64)
    mean = (probability[:, None] * gradient).sum(0)
    exact = float((probability * (gradient - mean).square().sum(1)).sum())
    assert exact > 0
    measured = gradient_variances(policy, rollouts, estimator, advantages, 600, generator())
    assert float(measured.mean()) == pytest.approx(exact, rel=0.1)
    three_samples = Elbo(num_samples=3, masks="exact")
    measured = gradient_variances(policy, rollouts, three_samples, advantages, 600, generator(1))
    assert float(measured.mean()) == pytest.approx(exact / 3, rel=0.15)
