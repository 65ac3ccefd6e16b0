"""Tiled log-probabilities and their gradients, against float64 softmax and autograd."""

import pytest
import torch

from stipule.estimators.fused_logps import fused_logps

ROWS, WIDTH, WORDS = 23, 8, 61


def problem(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    states = scale * torch.randn(ROWS, WIDTH, generator=generator)
    weight, bias = torch.randn(WORDS, WIDTH, generator=generator), torch.randn(WORDS, generator=generator)
    targets = torch.randint(WORDS, (ROWS,), generator=generator)
    targets[:2] = torch.tensor([0, WORDS - 1])
    return states, weight, bias, targets


def plain(states, weight, bias, targets):
    logits = states @ weight.T + (0 if bias is None else bias)
    return logits.log_softmax(1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("at_once", [1, 7, 100, 400, 10**6])
@pytest.mark.parametrize(
    "trained", [(), ("states",), ("states", "weight"), ("states", "weight", "bias"), ("weight",), ("states", "bias")]
)
@pytest.mark.parametrize("scale", [1.0, 300.0])  # logits of hundreds: nothing overflows, nothing is lost
def test_values_and_gradients_are_those_of_the_whole_softmax(at_once, trained, scale):
    given = dict(zip(("states", "weight", "bias", "targets"), problem(scale), strict=True))
    exact = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    for side in (given, exact):
        for name in trained:
            side[name].requires_grad_()
    wanted = plain(**exact)
    found = fused_logps(**given, dtype=torch.float32, at_once=at_once)
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-5)
    upstream = torch.linspace(-1, 2, ROWS)
    if not trained:
        assert not found.requires_grad
        return
    (found * upstream).sum().backward()
    (wanted * upstream.double()).sum().backward()
    for name in trained:
        gradient = exact[name].grad
        # Probabilities of logits of hundreds are known to their rounding, 3e-5.
        assert torch.allclose(given[name].grad.double(), gradient, atol=1e-4 * float(gradient.abs().max())), name


def test_without_a_bias_and_without_rows():
    states, weight, _, targets = problem()
    found = fused_logps(states, weight, None, targets, torch.float32, 50)
    assert torch.allclose(found, plain(states, weight, None, targets), atol=1e-5)
    states = states[:0].requires_grad_()
    empty = fused_logps(states, weight, None, targets[:0], torch.float32, 50)
    empty.sum().backward()
    assert empty.shape == (0,) and states.grad.shape == (0, WIDTH)


def test_one_value_whether_gradients_are_wanted_or_not():
    """The ratio of eq. 4 is exactly 1 where nothing has changed."""
    states, weight, bias, targets = problem()
    values = []
    for name in ("none", "states", "both"):
        states.requires_grad_(name != "none")
        weight.requires_grad_(name == "both")
        values.append(fused_logps(states, weight, bias, targets, torch.float32, 100).detach())
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])


def test_bfloat16_products_are_summed_in_float32():
    states, weight, bias, targets = problem()
    states.requires_grad_()
    found = fused_logps(states, weight, bias, targets, torch.bfloat16, 100)
    rounded = [t.detach().bfloat16() for t in (states, weight, bias)]
    logits = torch.nn.functional.linear(*rounded).float()  # as autocast computes it
    wanted = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(found, wanted, atol=1e-5)
    found.sum().backward()
    whole = states.detach().requires_grad_()
    plain(whole, weight, bias, targets).sum().backward()
    assert torch.allclose(states.grad, whole.grad, atol=2e-2 * float(whole.grad.abs().max()))
