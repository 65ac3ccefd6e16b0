"""Fused log-probabilities and their gradients, compared with a float64 softmax and autograd."""

import pytest
import torch

from stipule.estimators.fused_logps import fused_logps

POSITIONS, HIDDEN_SIZE, VOCAB_SIZE = 23, 8, 61


def problem(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    hidden_states = scale * torch.randn(POSITIONS, HIDDEN_SIZE, generator=generator)
    weight, bias = (
        torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=generator),
        torch.randn(VOCAB_SIZE, generator=generator),
    )
    targets = torch.randint(VOCAB_SIZE, (POSITIONS,), generator=generator)
    targets[:2] = torch.tensor([0, VOCAB_SIZE - 1])
    return hidden_states, weight, bias, targets


def reference_logps(hidden_states, weight, bias, targets):
    logits = hidden_states @ weight.T + (0 if bias is None else bias)
    return logits.log_softmax(1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("max_logits", [1, 7, 100, 400, 10**6])
@pytest.mark.parametrize(
    "trained",
    [
        (),
        ("hidden_states",),
        ("hidden_states", "weight"),
        ("hidden_states", "weight", "bias"),
        ("weight",),
        ("hidden_states", "bias"),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 300.0])  # logits of several hundred must not overflow
def test_values_and_gradients_match_the_full_softmax(max_logits, trained, scale):
    inputs = dict(zip(("hidden_states", "weight", "bias", "targets"), problem(scale), strict=True))
    exact = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    for tensors in (inputs, exact):
        for name in trained:
            tensors[name].requires_grad_()
    expected = reference_logps(**exact)
    logps = fused_logps(**inputs, dtype=torch.float32, max_logits=max_logits)
    assert torch.allclose(logps.double(), expected, rtol=1e-5, atol=1e-5)
    grad_output = torch.linspace(-1, 2, POSITIONS)
    if not trained:
        assert not logps.requires_grad
        return
    (logps * grad_output).sum().backward()
    (expected * grad_output.double()).sum().backward()
    for name in trained:
        gradient = exact[name].grad
        # The rounding of such logits limits probabilities to a precision of 3e-5.
        assert torch.allclose(inputs[name].grad.double(), gradient, atol=1e-4 * float(gradient.abs().max())), name


def test_no_bias_and_no_positions():
    hidden_states, weight, _, targets = problem()
    logps = fused_logps(hidden_states, weight, None, targets, torch.float32, 50)
    assert torch.allclose(logps, reference_logps(hidden_states, weight, None, targets), atol=1e-5)
    hidden_states = hidden_states[:0].requires_grad_()
    empty = fused_logps(hidden_states, weight, None, targets[:0], torch.float32, 50)
    empty.sum().backward()
    assert empty.shape == (0,) and hidden_states.grad.shape == (0, HIDDEN_SIZE)


def test_values_are_equal_with_and_without_gradients():
    """The ratio of eq. 4 must be exactly 1 before the first update."""
    hidden_states, weight, bias, targets = problem()
    values = []
    for name in ("none", "hidden_states", "both"):
        hidden_states.requires_grad_(name != "none")
        weight.requires_grad_(name == "both")
        values.append(fused_logps(hidden_states, weight, bias, targets, torch.float32, 100).detach())
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])


def test_bfloat16_products_are_summed_in_float32():
    hidden_states, weight, bias, targets = problem()
    hidden_states.requires_grad_()
    logps = fused_logps(hidden_states, weight, bias, targets, torch.bfloat16, 100)
    rounded = [t.detach().bfloat16() for t in (hidden_states, weight, bias)]
    logits = torch.nn.functional.linear(*rounded).float()  # as autocast computes it
    expected = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(logps, expected, atol=1e-5)
    logps.sum().backward()
    exact_states = hidden_states.detach().requires_grad_()
    reference_logps(exact_states, weight, bias, targets).sum().backward()
    assert torch.allclose(hidden_states.grad, exact_states.grad, atol=2e-2 * float(exact_states.grad.abs().max()))
