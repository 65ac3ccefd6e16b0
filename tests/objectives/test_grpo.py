"""Eq. 1 and 4 on arrays small enough to compute by hand."""

import math

import pytest
import torch

from stipule.errors import RecipeError
from stipule.objectives.advantage import GroupRelative
from stipule.objectives.grpo import Grpo
from stipule.objectives.loss_terms import estimate_kl
from stipule.types import LossInputs

NEW = torch.log(torch.tensor([[1.5, 0.9, 7.0], [0.5, 1.1, 2.0]]))
OLD = torch.zeros(2, 3)
LOSS_MASK = torch.tensor([[True, True, False], [True, True, True]])
ADVANTAGE = torch.tensor([2.0, -1.0])


def test_the_clipped_loss_is_the_hand_computed_one():
    # Row 1 (A = 2): min(3, 2.4) and min(1.8, 1.8), mean of two tokens of the loss mask = 2.1.
    # Row 2 (A = -1): min(-0.5, -0.8), min(-1.1, -1.1), min(-2, -1.2) = -0.8, -1.1, -2; mean = -1.3.
    loss = Grpo(epsilon=0.2, beta=0.0)(LossInputs(NEW, OLD, None, ADVANTAGE, LOSS_MASK))
    assert float(loss.value) == pytest.approx(-(2.1 - 1.3) / 2, abs=1e-6)
    # Clipped: ratio 1.5 with A > 0, ratio 0.5 with A < 0. Fractions 1/2 and 1/3.
    assert float(loss.metrics["policy/clip_ratio"]) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert float(loss.metrics["policy/ratio_max"]) == pytest.approx(2.0)


def test_the_kl_term_is_k3_of_the_reference():
    reference = torch.full((2, 3), math.log(2.0))
    plain = Grpo(epsilon=0.2, beta=0.0)(LossInputs(NEW, OLD, None, ADVANTAGE, LOSS_MASK))
    with_kl = Grpo(epsilon=0.2, beta=0.5)(LossInputs(NEW, OLD, reference, ADVANTAGE, LOSS_MASK))
    # k3 = r - 1 - log r with r = 2 / ratio.
    per_token = [[2 / x - 1 - math.log(2 / x) for x in row] for row in ([1.5, 0.9], [0.5, 1.1, 2.0])]
    distance = sum(sum(row) / len(row) for row in per_token) / 2
    assert float(with_kl.value - plain.value) == pytest.approx(0.5 * distance, abs=1e-6)


def test_k3_is_never_negative_and_zero_only_at_equality():
    new = torch.linspace(-3, 3, 61)[None]
    assert bool((estimate_kl("k3", new, torch.zeros_like(new)) >= 0).all())
    assert float(estimate_kl("k3", torch.zeros(1, 1), torch.zeros(1, 1))) == 0.0


def test_clipped_tokens_have_no_gradient():
    new = NEW.clone().requires_grad_()
    Grpo(epsilon=0.2, beta=0.0)(LossInputs(new, OLD, None, ADVANTAGE, LOSS_MASK)).value.backward()
    assert (new.grad == 0).tolist() == [[True, False, True], [True, False, False]]


def test_the_loss_does_not_depend_on_micro_batches():
    whole = Grpo(beta=0.1)(LossInputs(NEW, OLD, OLD + 0.3, ADVANTAGE, LOSS_MASK)).value
    losses = [
        Grpo(beta=0.1)(
            LossInputs(NEW[i : i + 1], OLD[:1], OLD[:1] + 0.3, ADVANTAGE[i : i + 1], LOSS_MASK[i : i + 1])
        ).value
        for i in (0, 1)
    ]
    assert float(whole) == pytest.approx(float(sum(losses)) / 2, abs=1e-6)


def test_advantages_are_centred_and_scaled_inside_groups():
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 3.0, 3.0, 3.0, 3.0])
    assert GroupRelative()(reward, 4).tolist() == pytest.approx([1, -1, -1, 1, 0, 0, 0, 0])
    assert GroupRelative(scale_rewards=False)(reward, 4).tolist() == pytest.approx([0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0])


def test_a_group_of_equal_rewards_has_exactly_no_advantage():
    # 0.1 is not a binary fraction: its mean over 3 differs from it by rounding.
    assert GroupRelative()(torch.tensor([0.1, 0.1, 0.1]), 3).tolist() == [0.0, 0.0, 0.0]


def test_the_published_advantage_divides_by_the_unbiased_deviation_plus_epsilon():
    # Rewards 1, 0, 0, 1: mean 0.5, unbiased variance 4 x 0.25 / 3.
    advantages = GroupRelative(std="sample", std_epsilon=1e-4)(
        torch.tensor([1.0, 0.0, 0.0, 1.0, 0.3, 0.3, 0.3, 0.3]), 4
    )
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert advantages.tolist() == pytest.approx([expected, -expected, -expected, expected, 0, 0, 0, 0])
    with pytest.raises(RecipeError, match="advantage.std_epsilon is -1"):
        GroupRelative(std_epsilon=-1)


def test_epsilon_and_beta_out_of_range_are_refused():
    with pytest.raises(RecipeError, match="objective.epsilon is 1.5"):
        Grpo(epsilon=1.5)
    with pytest.raises(RecipeError, match="objective.beta is -1"):
        Grpo(beta=-1)
