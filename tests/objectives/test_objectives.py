"""The other objectives, advantages and KL estimators on arrays small enough to compute by hand."""

import math

import pytest
import torch

from stipule.errors import RecipeError
from stipule.objectives.advantage import GroupRelative, Rloo, Wd1Weights
from stipule.objectives.grpo import Grpo
from stipule.objectives.gspo import Gspo
from stipule.objectives.loss_terms import aggregate_loss, estimate_kl
from stipule.objectives.reinforce import Reinforce
from stipule.types import LossInputs

NEW = torch.log(torch.tensor([[1.5, 0.9, 7.0], [0.5, 1.1, 2.0]]))
OLD = torch.zeros(2, 3)
LOSS_MASK = torch.tensor([[True, True, False], [True, True, True]])
ADVANTAGE = torch.tensor([2.0, -1.0])
near = pytest.approx


def test_epsilon_high_widens_the_upper_clip():
    # As in test_grpo, but min(3, 1.4 x 2) = 2.8 and min(-2, -1.4) stays -2.
    loss = Grpo(epsilon=0.2, epsilon_high=0.4, beta=0.0)(LossInputs(NEW, OLD, None, ADVANTAGE, LOSS_MASK))
    row = ((2.8 + 1.8) / 2, (-0.8 - 1.1 - 2.0) / 3)
    assert float(loss.value) == near(-sum(row) / 2, abs=1e-6)


def test_the_token_mean_gives_long_responses_more_weight():
    loss = Grpo(epsilon=0.2, beta=0.0, loss_aggregation="token")(LossInputs(NEW, OLD, None, ADVANTAGE, LOSS_MASK))
    assert float(loss.value) == near(-(2.4 + 1.8 - 0.8 - 1.1 - 2.0) / 5, abs=1e-6)


def test_the_sequence_ratio_is_the_geometric_mean():
    first, second = math.sqrt(1.5 * 0.9), (0.5 * 1.1 * 2.0) ** (1 / 3)
    loss = Gspo(epsilon=0.1)(LossInputs(NEW, OLD, None, ADVANTAGE, LOSS_MASK))
    assert float(loss.value) == near(
        -(min(first * 2, 1.1 * 2) + min(-second, -max(0.9, min(second, 1.1)))) / 2, abs=1e-6
    )
    assert float(loss.metrics["policy/ratio"]) == near((first + second) / 2, abs=1e-6)
    assert float(loss.metrics["policy/clip_ratio"]) == near(0.5)


@pytest.mark.parametrize("kind", ["k1", "k2"])
def test_the_sequence_kl_is_that_of_the_summed_log_probability_per_token(kind):
    plain = Gspo(epsilon=0.1)(LossInputs(NEW, OLD, None, ADVANTAGE, LOSS_MASK))
    with_kl = Gspo(epsilon=0.1, beta=0.5, kl_estimator=kind)(LossInputs(NEW, OLD, OLD + 0.2, ADVANTAGE, LOSS_MASK))
    sums = (math.log(1.5 * 0.9) - 0.4, 2), (math.log(0.5 * 1.1 * 2.0) - 0.6, 3)  # B - B_ref, |o|
    expected = sum((d if kind == "k1" else d * d / 2) / n for d, n in sums) / 2
    assert float(with_kl.value - plain.value) == near(0.5 * expected, abs=1e-6)


def test_kl_estimators_are_the_hand_computed_ones():
    new, ref = torch.tensor([[0.3]]), torch.tensor([[-0.2]])
    result = [float(estimate_kl(kind, new, ref)) for kind in ("k1", "k2", "k3")]
    assert result == near([0.5, 0.125, math.exp(-0.5) - 1 + 0.5], abs=1e-6)


def test_kl_estimators_average_to_the_kl_over_samples_of_the_policy():
    p, q = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
    kl = float((p.exp() * (p - q)).sum())
    for kind, exact in (("k1", True), ("k3", True), ("k2", False)):
        result = float((p.exp() * estimate_kl(kind, p, q)).sum())
        assert result == near(kl, abs=1e-6 if exact else 2e-3)
        assert exact or result != near(kl, abs=1e-6)


@pytest.mark.parametrize(("kind", "direction"), [("k2", "forward"), ("k3", "backward"), ("k1", "none")])
def test_the_gradient_of_each_kl_estimator_is_the_one_its_docstring_names(kind, direction):
    logits = torch.tensor([0.2, -0.4, 0.5], requires_grad=True)
    q = torch.tensor([0.4, 0.4, 0.2])
    p = logits.log_softmax(0)
    (
        p.detach().exp() * estimate_kl(kind, p, q.log())
    ).sum().backward()  # samples come from p and are not differentiated
    mine, logits.grad = logits.grad, None
    expected = {
        "forward": lambda: (p2.exp() * (p2 - q.log())).sum(),
        "backward": lambda: (q * (q.log() - p2)).sum(),
        "none": lambda: 0 * p2.sum(),
    }
    p2 = logits.log_softmax(0)
    expected[direction]().backward()
    assert torch.allclose(mine, logits.grad, atol=1e-6)


@pytest.mark.parametrize(
    ("loss_aggregation", "expected"),
    [("sequence", (2 * 1.5 - 2.0) / 2), ("token", (2 * 3 - 6.0) / 5), ("sum", (2 * 3 - 6.0) / 2)],
)
def test_reinforce_is_advantage_times_log_probability(loss_aggregation, expected):
    logp = torch.tensor([[1.0, 2.0, 9.0], [1.0, 2.0, 3.0]], requires_grad=True)
    loss = Reinforce(loss_aggregation=loss_aggregation)(LossInputs(logp, logp, None, ADVANTAGE, LOSS_MASK))
    assert float(loss.value.detach()) == near(-expected, abs=1e-6)
    loss.value.backward()
    assert bool((logp.grad != 0).eq(LOSS_MASK).all())


def test_a_row_with_an_empty_loss_mask_adds_nothing():
    values, empty = torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    for kind in ("sequence", "token", "sum"):
        assert float(aggregate_loss(kind, values, empty)) == 0.0


REWARD = torch.tensor([1.0, 0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 3.0])


def test_leave_one_out_subtracts_the_mean_of_the_others():
    assert Rloo()(REWARD, 4).tolist() == near([1, -1 / 3, -1 / 3, -1 / 3, 0, 0, 0, 0], abs=1e-6)


def test_wd1_weights_are_those_of_wd1_times_the_group_size():
    up, down = [math.exp(0.75), *[math.exp(-0.25)] * 3], [math.exp(-0.75), *[math.exp(0.25)] * 3]
    expected = [4 * (u / sum(up) - d / sum(down)) for u, d in zip(up, down, strict=True)]
    assert Wd1Weights()(REWARD, 4).tolist() == near([*expected, 0, 0, 0, 0], abs=1e-6)


def test_positive_exponential_weights_do_not_cancel():
    result = Wd1Weights(positive_only=True)(REWARD, 4)
    assert bool((result > 0).all())
    assert result[4:].tolist() == near([1.0] * 4)
    assert not Wd1Weights(positive_only=True).has_both_signs


def test_a_low_temperature_gives_the_best_response_all_weight():
    assert Wd1Weights(temperature=0.01, positive_only=True)(REWARD, 4)[:4].tolist() == near([4, 0, 0, 0], abs=1e-6)


def test_equal_rewards_have_exactly_no_advantage():
    same = torch.tensor([0.1, 0.1, 0.1])
    for advantage_function in (GroupRelative(), GroupRelative(scale_rewards=False), Rloo(), Wd1Weights()):
        assert advantage_function(same, 3).tolist() == [0.0, 0.0, 0.0]


def test_values_out_of_range_are_refused():
    with pytest.raises(RecipeError, match="epsilon_high is 0.1"):
        Grpo(epsilon=0.2, epsilon_high=0.1)
    with pytest.raises(RecipeError, match="objective.beta is -1"):
        Gspo(beta=-1)
    with pytest.raises(RecipeError, match="advantage.temperature is 0"):
        Wd1Weights(temperature=0)
