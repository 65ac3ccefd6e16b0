"""Loss and gradient are finite and right for log-ratios up to +-1e4, in float32 and bfloat16."""

import math

import pytest
import torch

from stipule.objectives.advantage import Wd1Weights
from stipule.objectives.grpo import Grpo
from stipule.objectives.gspo import Gspo
from stipule.objectives.loss_terms import MAX_EXPONENT, bounded_exp, bounded_expm1, estimate_kl, sequence_ratio
from stipule.objectives.reinforce import Reinforce
from stipule.types import LossInputs

LOG_RATIOS = [x for size in (0.0, 0.125, 0.25, 3.0, 19.0, 21.0, 100.0, 1000.0, 1e4) for x in (size, -size)]
DTYPES = [torch.float32, torch.bfloat16]
OBJECTIVES = [
    *(Grpo(beta=beta, kl_estimator=kl) for beta in (0.0, 0.04) for kl in ("k1", "k2", "k3")),
    Grpo(epsilon_high=0.28, loss_aggregation="token"),
    *(Gspo(beta=beta, kl_estimator=kl) for beta in (0.0, 0.04) for kl in ("k1", "k2")),
    *(Reinforce(loss_aggregation=kind) for kind in ("sequence", "token", "sum")),
]


def exponential(x):
    """e^x and its derivative in double precision, continued by the tangent at 20."""
    if x <= 20:
        return math.exp(x), math.exp(x)
    return math.exp(20) * (1 + x - 20), math.exp(20)


def surrogate(log_ratio, advantage, low=0.8, high=1.2):
    """min(rho A, clip(rho) A) and its derivative to log rho; the derivative is 0 where the clip decides."""
    rho, slope = exponential(log_ratio)
    if (advantage > 0 and rho > high) or (advantage < 0 and rho < low):
        return (high if advantage > 0 else low) * advantage, 0.0
    return rho * advantage, slope * advantage


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("advantage", [1.5, -1.5, 0.0])
@pytest.mark.parametrize("log_ratio", LOG_RATIOS)
def test_the_token_loss_and_its_gradient_are_those_of_the_closed_form(log_ratio, advantage, dtype):
    logps = torch.tensor([[log_ratio]], dtype=dtype, requires_grad=True)
    reference = torch.zeros(1, 1, dtype=dtype)
    inputs = LossInputs(logps, torch.zeros(1, 1, dtype=dtype), reference, torch.tensor([advantage]), logps >= -1e5)
    loss = Grpo(beta=0.5)(inputs)
    loss.value.backward()
    x = float(logps.detach())  # rounded to the dtype
    value, slope = surrogate(x, advantage)
    inverse, inverse_slope = exponential(-x)
    kl, kl_slope = inverse - 1 + x, -inverse_slope + 1
    assert float(loss.value.detach()) == pytest.approx(-value + 0.5 * kl, rel=1e-5, abs=1e-6)
    # In bfloat16 both parts of the gradient are rounded before they are added.
    rounding = 1e-5 if dtype is torch.float32 else 2**-7 * (abs(slope) + abs(kl_slope))
    assert float(logps.grad) == pytest.approx(-slope + 0.5 * kl_slope, rel=1e-5, abs=rounding)
    assert float(loss.metrics["policy/frac_bounded"]) == (abs(x) > 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("advantage", [1.5, -1.5, 0.0])
@pytest.mark.parametrize("log_ratio", LOG_RATIOS)
def test_the_sequence_loss_and_its_gradient_are_those_of_the_closed_form(log_ratio, advantage, dtype):
    # Four tokens share the log-ratio, so their mean is the log-ratio, and each has a quarter of the gradient.
    logps = torch.full((1, 4), log_ratio, dtype=dtype, requires_grad=True)
    zero, mask = torch.zeros(1, 4, dtype=dtype), torch.ones(1, 4, dtype=torch.bool)
    loss = Gspo(beta=0.5)(LossInputs(logps, zero, zero, torch.tensor([advantage]), mask))
    loss.value.backward()
    x = float(logps.detach()[0, 0])
    value, slope = surrogate(x, advantage)
    assert float(loss.value.detach()) == pytest.approx(-value + 0.5 * 4 * x * x / 2, rel=1e-5, abs=1e-6)
    rounding = 1e-5 if dtype is torch.float32 else 2**-7 * (abs(slope) + abs(x))
    assert logps.grad.float().tolist()[0] == pytest.approx([-slope / 4 + 0.5 * x] * 4, rel=1e-5, abs=rounding)
    assert float(loss.metrics["policy/frac_bounded"]) == (x > 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_what_the_clip_makes_constant_has_a_gradient_of_exactly_0(advantage, dtype):
    clipped = torch.tensor([0.5, 21.0, 100.0, 1e4], dtype=dtype) * advantage
    for objective in (Grpo(beta=0.0), Gspo()):
        for x in clipped:
            logps = x.view(1, 1).clone().requires_grad_()
            inputs = LossInputs(logps, torch.zeros_like(logps), None, torch.tensor([advantage]), logps.abs() > 0)
            objective(inputs).value.backward()
            assert float(logps.grad) == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_objective_is_finite_in_value_gradient_and_metrics(objective, dtype):
    columns = torch.tensor(LOG_RATIOS)
    logps = torch.stack([columns, columns, columns.flip(0)]).to(dtype).requires_grad_()
    zero, mask = torch.zeros_like(logps), torch.ones(logps.shape, dtype=torch.bool)
    mask[2] = False  # a row without tokens
    loss = objective(LossInputs(logps, zero, zero + 0.5, torch.tensor([1.0, -1.0, 1.0]), mask))
    loss.value.backward()
    assert math.isfinite(float(loss.value.detach())) and bool(logps.grad.isfinite().all())
    assert bool((logps.grad[2] == 0).all())
    assert all(math.isfinite(float(value)) for value in loss.metrics.values())


def test_bfloat16_inputs_give_the_loss_of_the_same_numbers_in_float32():
    generator = torch.Generator().manual_seed(0)
    logps, old, ref = (torch.randn(4, 9, generator=generator).mul(30).bfloat16() for _ in range(3))
    advantages, mask = torch.randn(4, generator=generator), torch.rand(4, 9, generator=generator) < 0.7
    for objective in OBJECTIVES:
        low = objective(LossInputs(logps, old, ref, advantages, mask))
        high = objective(LossInputs(logps.float(), old.float(), ref.float(), advantages, mask))
        assert float(low.value) == float(high.value) and low.metrics == high.metrics


def test_the_exponential_is_exact_below_its_limit_and_smooth_at_it():
    x = torch.linspace(-30, MAX_EXPONENT, 1001)
    assert torch.equal(bounded_exp(x), x.exp()) and torch.equal(bounded_expm1(x), x.expm1())
    at = torch.tensor([MAX_EXPONENT], requires_grad=True)
    bounded_exp(at).backward()
    assert float(at.grad) == pytest.approx(math.exp(20), rel=1e-6)
    above = torch.linspace(MAX_EXPONENT, 1e4, 1001)
    assert bool((bounded_exp(above).diff() > 0).all()) and bool((estimate_kl("k3", -above, 0 * above) > 0).all())


def test_the_gradient_of_the_sequence_ratio_does_not_see_tokens_outside_the_response():
    logps = torch.tensor([[0.1, math.inf, math.nan]], requires_grad=True)
    sequence_ratio(logps, torch.zeros(1, 3), torch.tensor([[True, False, False]])).sum().backward()
    assert logps.grad[0, 0] > 1 and bool((logps.grad[0, 1:] == 0).all())


def test_wd1_weights_are_finite_at_every_temperature():
    for temperature in (1e-40, 1e-30, 1e-3, 1.0, 1e30):
        weights = Wd1Weights(temperature=temperature)(torch.tensor([3.0, 2.0, 0.0, -1e4]), 4)
        assert bool(weights.isfinite().all()) and float(weights.sum()) == pytest.approx(0, abs=1e-5)
    assert Wd1Weights(temperature=1e-40)(torch.tensor([3.0, 2.0, 0.0]), 3).tolist() == [3.0, 0.0, -3.0]
