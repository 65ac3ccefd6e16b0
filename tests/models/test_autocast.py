"""Autocast done once is autocast, for less."""

from dataclasses import replace

import pytest
import torch

from stipule.models import autocast, loading
from stipule.models.loading import LoRA, ModelConfig, load_policy
from tests.models import published

CHOICE = ModelConfig(path="", lora=LoRA(rank=4, alpha=4), autocast=True)
TOKENS = torch.randint(4, 20, (2, 12), generator=torch.Generator().manual_seed(0))
EVERY = torch.ones_like(TOKENS, dtype=torch.bool)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("published") / "llada"
    published.write("llada", place)
    return str(place)


def loaded(place, eased, monkeypatch, attention="eager"):
    if not eased:
        monkeypatch.setattr(loading, "ease_autocast", lambda policy: None)
    policy = load_policy(replace(CHOICE, path=place, attention=attention, **published.choice("llada")), seed=1)
    monkeypatch.undo()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in policy.trainable_parameters().items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return policy


def logits_and_gradients(policy):
    logits = policy.logits(TOKENS, None, EVERY)
    logits.square().sum().backward()
    return logits.detach(), [p.grad for p in policy.trainable().values()]


def test_rounding_once_gives_the_same_bits(place, monkeypatch):
    every_call, once = (loaded(place, eased, monkeypatch) for eased in (False, True))
    assert once.fingerprint() == every_call.fingerprint()
    wanted, gradients = logits_and_gradients(every_call)
    found, again = logits_and_gradients(once)
    assert torch.equal(found, wanted)
    assert all(torch.equal(one, other) for one, other in zip(again, gradients, strict=True))
    matrices = [m.weight for n, m in once.core.named_modules() if n.endswith(("base_layer", "lm_head"))]
    assert len(matrices) > 1 and {w.dtype for w in matrices} == {torch.bfloat16}
    rest = {n: p.dtype for n, p in once.core.named_parameters() if "lora_" in n or "embed" in n or "norm" in n}
    assert rest and set(rest.values()) == {torch.float32}
    with once.reference(), every_call.reference():
        assert torch.equal(once.logits(TOKENS, None, EVERY), every_call.logits(TOKENS, None, EVERY))


def test_fused_attention_stays_in_float32_on_a_cpu(place, monkeypatch):
    seen = []
    plain = autocast.sdpa_attention_forward
    monkeypatch.setattr(
        autocast,
        "sdpa_attention_forward",
        lambda m, q, *rest, **named: seen.append(q.dtype) or plain(m, q, *rest, **named),
    )
    policy = load_policy(replace(CHOICE, path=place, **published.choice("llada")), seed=1)
    found = policy.logits(TOKENS, None, EVERY)
    padding = torch.arange(12)[None] >= torch.tensor([[0], [5]])
    padded = policy.logits(TOKENS, padding, padding)
    assert len(seen) >= 4 and set(seen) == {torch.float32}
    exact = load_policy(replace(CHOICE, path=place, autocast=False, **published.choice("llada")), seed=1)
    for one, other in (found, exact.logits(TOKENS, None, EVERY)), (padded, exact.logits(TOKENS, padding, padding)):
        assert float((one - other).abs().max()) < 0.05 * float(other.abs().max())


def test_what_is_trained_is_not_rounded(place):
    policy = load_policy(replace(CHOICE, path=place, lora=None, **published.choice("llada")))
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
