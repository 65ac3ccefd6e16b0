"""Measured variances against enumeration and closed forms."""

import itertools
import math

import pytest
import torch

from stipule.estimators.elbo import Elbo
from stipule.estimators.mask_samples import make_mask_samples
from stipule.evaluation.gradient_variance import surrogate_gradient, gradient_variances
from stipule.evaluation.theory import context_free_split
from stipule.evaluation.elbo_variance import (
    ESTIMATORS,
    estimates,
    leave_one_out_control,
    per_token,
    ratio_interval,
    summary,
    split_variance,
    variances,
    with_calls,
    with_sampled_mask,
)
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


def test_the_measured_variance_is_the_enumerated_one(toy):
    chances = [(m, 1 / (4 * math.comb(4, len(m)))) for m in subsets([0, 1, 2, 3])()]
    values = [(p, 4 / len(m) * toy.masked_sum(ROW, m)) for m, p in chances]
    mean = sum(p * v for p, v in values)
    exact = sum(p * v * v for p, v in values) - mean**2
    found = variances(toy, response([list(ROW)]), Elbo(num_samples=1, masks="exact"), 4000, generator())
    assert float(found) == pytest.approx(exact, rel=0.06)
    thirds = variances(toy, response([list(ROW)]), Elbo(num_samples=3, masks="exact"), 3000, generator())
    assert float(thirds) == pytest.approx(exact / 3, rel=0.1)


def test_time_and_noise_are_the_enumerated_parts(toy):
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
        found = variances(
            policy, response([list(ROW)]), Elbo(num_samples=1, masks=masks, t_min=t_min), 6000, generator()
        )
        assert float(found) == pytest.approx(context_free_split(logp, masks, t_min).total, rel=0.08)


def test_estimates_do_not_depend_on_how_they_are_batched(toy):
    many = response([list(ROW), [0, 1, 1, 2]])
    views = Elbo().sample_masks(many, 7, generator())
    one, other = (estimates(toy, many, views, Elbo(), rows) for rows in (1, 4096))
    assert torch.allclose(one, other, atol=1e-6)
    assert one.shape == (7, 2)


def test_pairs_come_at_even_numbers_of_calls_only():
    for form in ESTIMATORS.values():
        for calls in (2, 3, 4):
            found = with_calls(form, calls)
            assert (
                found is None if form.timestep_sampling == "antithetic" and calls == 3 else found.num_samples == calls
            )


def test_anchors_can_be_laid_over_a_response_afterwards():
    free = torch.tensor([[True, False, True, True]])
    pruned = with_sampled_mask(response([list(ROW)]), free)
    assert torch.equal(pruned.loss_mask, free)
    assert float(per_token(torch.tensor([18.0]), pruned)) == 2.0


def test_the_control_variate_is_unbiased_and_takes_the_time_part_out():
    group, draws = 4, 3
    level = torch.rand(draws, 8000 * group, generator=generator())
    noise = torch.randn(draws, 8000 * group, generator=generator(1))
    raw = -5 - 6 * level + 0.3 * noise  # a steep dependence on the level, shared by the group
    better = leave_one_out_control(raw, level, group)
    assert float(better.mean()) == pytest.approx(-8, abs=0.02)
    assert float(better.mean(0).var()) < 0.6 * float(raw.mean(0).var())


def test_summaries_hold_their_truth():
    values = torch.linspace(1, 3, 101)
    found = summary(values)
    assert (found.mean, found.median) == (pytest.approx(2), pytest.approx(2))
    assert found.low < 2 < found.high
    middle, low, high = ratio_interval(values * 0.5, values)
    assert (middle, low, high) == (pytest.approx(0.5),) * 3


def test_the_gradients_variance_is_the_one_enumeration_gives():
    policy = random_policy()
    policy.model.requires_grad_(True)
    few = response([[5, 6, 7]])
    form, advantage = Elbo(num_samples=1, masks="exact"), torch.tensor([2.0])
    found, chances = [], []
    for hidden in itertools.product((False, True), repeat=3):
        count = sum(hidden)
        if count:
            flags = torch.tensor(hidden).view(1, 1, 3)
            views = make_mask_samples(few, flags, 3 / count * flags.float())
            found.append(surrogate_gradient(policy, few, views, form, advantage))
            chances.append(1 / 3 / math.comb(3, count))
    every, chance = torch.stack(found).double(), torch.tensor(chances, dtype=torch.float64)
    mean = (chance[:, None] * every).sum(0)
    exact = float((chance * (every - mean).square().sum(1)).sum())
    assert exact > 0
    drawn = gradient_variances(policy, few, form, advantage, 600, generator())
    assert float(drawn.mean()) == pytest.approx(exact, rel=0.1)
    third = gradient_variances(policy, few, Elbo(num_samples=3, masks="exact"), advantage, 600, generator(1))
    assert float(third.mean()) == pytest.approx(exact / 3, rel=0.15)
