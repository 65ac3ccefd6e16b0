"""Every objective equals loops over plain numbers, with an old policy that differs and responses of 0 to 4 tokens."""

import math

import pytest
import torch

from stipule.errors import RecipeError
from stipule.objectives.advantage import GroupRelative, Rloo, Wd1Weights
from stipule.objectives.grpo import Grpo
from stipule.objectives.gspo import Gspo
from stipule.objectives.loss_terms import clip_mask
from stipule.objectives.reinforce import Reinforce
from stipule.types import LossInputs

LENGTHS = (1, 4, 2, 3)
ADVANTAGES = (0.5, -0.75, 1.5, -1.25)
EPSILON, EPSILON_HIGH, BETA = 0.1, 0.3, 0.5


def random_inputs(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(3)
    logps, old, ref = (torch.randn(4, 4, generator=generator) * 0.3 - 2 for _ in range(3))
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    return LossInputs(logps, old, ref, torch.tensor(ADVANTAGES), mask)


def rows(inputs):
    """The tokens of each response as (log-probability, that of the old policy, that of the reference), and A."""
    for row, length in enumerate(inputs.normalizer_mask.sum(1).tolist()):
        columns = (inputs.logps, inputs.old_logps, inputs.ref_logps)
        yield [tuple(float(x[row, i]) for x in columns) for i in range(length)], ADVANTAGES[row]


def mean(values):
    return sum(values) / max(1, len(values))


def surrogate(rho, advantage):
    return min(rho * advantage, min(max(rho, 1 - EPSILON), 1 + EPSILON_HIGH) * advantage)


def kl(kind, logp, ref):
    return {"k1": logp - ref, "k2": (logp - ref) ** 2 / 2, "k3": math.exp(ref - logp) - 1 - ref + logp}[kind]


def is_clipped(rho, advantage):
    return float(rho > 1 + EPSILON_HIGH if advantage > 0 else rho < 1 - EPSILON)


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_grpo(kind, aggregation):
    inputs = random_inputs()
    objective = Grpo(
        epsilon=EPSILON, epsilon_high=EPSILON_HIGH, beta=BETA, kl_estimator=kind, loss_aggregation=aggregation
    )
    loss = objective(inputs)
    ratios = [[(math.exp(new - old), a) for new, old, _ in tokens] for tokens, a in rows(inputs)]
    values = [
        [surrogate(math.exp(new - old), a) - BETA * kl(kind, new, ref) for new, old, ref in tokens]
        for tokens, a in rows(inputs)
    ]
    expected = (
        mean([mean(row) for row in values])
        if aggregation == "sequence"
        else mean([value for row in values for value in row])
    )
    assert float(loss.value) == pytest.approx(-expected, abs=1e-6)
    assert {name: float(value) for name, value in loss.metrics.items() if name != "policy/frac_bounded"} == {
        "policy/kl": pytest.approx(
            mean([mean([kl(kind, x, z) for x, _, z in row]) for row, _ in rows(inputs)]), abs=1e-6
        ),
        "policy/clip_ratio": pytest.approx(mean([mean([is_clipped(*pair) for pair in row]) for row in ratios])),
        "policy/ratio": pytest.approx(mean([mean([rho for rho, _ in row]) for row in ratios])),
        "policy/ratio_max": pytest.approx(max(rho for row in ratios for rho, _ in row)),
    }


@pytest.mark.parametrize("kind", ["k1", "k2"])
def test_gspo(kind):
    inputs = random_inputs()
    loss = Gspo(epsilon=EPSILON, epsilon_high=EPSILON_HIGH, beta=BETA, kl_estimator=kind)(inputs)
    ratios = [(math.exp(mean([new - old for new, old, _ in tokens])), a) for tokens, a in rows(inputs)]
    distances = [
        kl(kind, sum(new for new, _, _ in tokens), sum(ref for _, _, ref in tokens)) / len(tokens)
        for tokens, _ in rows(inputs)
    ]
    expected = mean([surrogate(*pair) for pair in ratios]) - BETA * mean(distances)
    assert float(loss.value) == pytest.approx(-expected, abs=1e-6)
    assert {name: float(value) for name, value in loss.metrics.items() if name != "policy/frac_bounded"} == {
        "policy/kl": pytest.approx(mean(distances), abs=1e-6),
        "policy/clip_ratio": pytest.approx(mean([is_clipped(*pair) for pair in ratios])),
        "policy/ratio": pytest.approx(mean([rho for rho, _ in ratios])),
        "policy/ratio_max": pytest.approx(max(rho for rho, _ in ratios)),
    }


@pytest.mark.parametrize("lengths", [LENGTHS, (1, 0, 0, 0)])
def test_reinforce(lengths):
    inputs = random_inputs(lengths)
    values = [[logp * a for logp, _, _ in tokens] for tokens, a in rows(inputs)]
    expected = {
        "sequence": mean([mean(row) for row in values]),
        "token": mean([value for row in values for value in row]),
        "sum": mean([sum(row) for row in values]),
    }
    for aggregation, value in expected.items():
        assert float(Reinforce(loss_aggregation=aggregation)(inputs).value) == pytest.approx(-value, abs=1e-6)


def test_without_a_kl_term_there_is_no_kl_metric_and_a_reference_changes_nothing():
    inputs = random_inputs()
    without = LossInputs(inputs.logps, inputs.old_logps, None, inputs.advantages, inputs.normalizer_mask)
    for objective in (Grpo(beta=0.0), Gspo(beta=0.0)):
        assert float(objective(inputs).value) == float(objective(without).value)
        assert "policy/kl" not in objective(inputs).metrics


def test_a_ratio_at_the_bound_and_an_advantage_of_0_are_not_clipped():
    ratio = torch.tensor([1.25, 1.375, 0.75, 0.625, 1.375, 0.625, 1.375, 0.625])
    advantages = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.0, 0.0, -0.5, 0.5])
    expected = [False, True, False, True, False, False, False, False]
    assert clip_mask(ratio, advantages, 0.25, 0.25).tolist() == expected


def test_a_response_without_tokens_is_in_no_metric():
    """Ratios of the others are below 1, and what the empty row holds is not read."""
    mask = torch.tensor([[True, True], [False, False]])
    logps, old = torch.tensor([[-2.5, -2.25], [0.0, 9.0]]), torch.full((2, 2), -2.0)
    ratios = [math.exp(-0.5), math.exp(-0.25)]
    inputs = LossInputs(logps, old, old, torch.tensor([1.0, 1.0]), mask)
    for objective, most in ((Grpo(), ratios[1]), (Gspo(beta=0.04), math.exp(-0.375))):
        metrics = objective(inputs).metrics
        assert float(metrics["policy/ratio_max"]) == pytest.approx(most)
        assert float(metrics["policy/clip_ratio"]) == 0.0
    assert float(Gspo(beta=0.04)(inputs).metrics["policy/kl"]) == pytest.approx(0.75**2 / 2 / 2)


def test_the_bounds_of_the_coefficients_themselves():
    assert Grpo(epsilon=0.2, epsilon_high=0.2).epsilon_high == 0.2
    for epsilon in (0.0, 1.0):
        with pytest.raises(RecipeError, match="objective.epsilon is"):
            Grpo(epsilon=epsilon)
    with pytest.raises(RecipeError, match=r"objective.epsilon_high is 0.1;"):
        Gspo(epsilon=0.2, epsilon_high=0.1)


def test_equal_rewards_beside_another_group_have_exactly_no_advantage():
    # The mean of three times 0.1 differs from 0.1 in the last bit.
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.0, 1.0, 5.0])
    for function in (GroupRelative(), GroupRelative(scale_rewards=False), Rloo(), Wd1Weights()):
        result = function(rewards, 3).tolist()
        assert result[:3] == [0.0, 0.0, 0.0] and 0.0 not in result[3:]
