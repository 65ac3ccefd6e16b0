"""Rounding frozen matrices once gives the results of autocast."""

from dataclasses import replace

import pytest
import torch

from stipule.models import autocast, loading
from stipule.models.loading import LoRA, ModelConfig, load_policy
from tests.models import published

CONFIG = ModelConfig(path="", lora=LoRA(rank=4, alpha=4), autocast=True)
INPUT_IDS = torch.randint(4, 20, (2, 12), generator=torch.Generator().manual_seed(0))
EVERY = torch.ones_like(INPUT_IDS, dtype=torch.bool)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "llada"
    published.write("llada", folder)
    return str(folder)


def load(path, prepared, monkeypatch, attention="eager"):
    if not prepared:
        monkeypatch.setattr(loading, "prepare_autocast", lambda policy, on_cpu=None: None)
    policy = load_policy(replace(CONFIG, path=path, attention=attention, **published.settings("llada")), seed=1)
    monkeypatch.undo()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in policy.trainable_parameters().items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return policy


def logits_and_gradients(policy):
    logits = policy.logits(INPUT_IDS, None, EVERY)
    logits.square().sum().backward()
    return logits.detach(), [p.grad for p in policy.trainable_parameters().values()]


def test_rounding_once_gives_the_same_bits(path, monkeypatch):
    every_call, once = (load(path, prepared, monkeypatch) for prepared in (False, True))
    assert once.fingerprint() == every_call.fingerprint()
    expected_logits, expected_gradients = logits_and_gradients(every_call)
    logits, gradients = logits_and_gradients(once)
    assert torch.equal(logits, expected_logits)
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected_gradients, strict=True))
    network = once.unwrapped_model
    matrices = [m.weight for n, m in network.named_modules() if n.endswith(("base_layer", "lm_head"))]
    assert len(matrices) > 1 and {w.dtype for w in matrices} == {torch.bfloat16}
    others = {n: p.dtype for n, p in network.named_parameters() if "lora_" in n or "embed" in n or "norm" in n}
    assert others and set(others.values()) == {torch.float32}
    with once.reference(), every_call.reference():
        assert torch.equal(once.logits(INPUT_IDS, None, EVERY), every_call.logits(INPUT_IDS, None, EVERY))


def test_fused_attention_stays_in_float32_on_a_cpu(path, monkeypatch):
    dtypes = []
    original = autocast.sdpa_attention_forward
    monkeypatch.setattr(
        autocast,
        "sdpa_attention_forward",
        lambda m, q, *args, **kwargs: dtypes.append(q.dtype) or original(m, q, *args, **kwargs),
    )
    policy = load_policy(replace(CONFIG, path=path, **published.settings("llada")), seed=1)
    logits = policy.logits(INPUT_IDS, None, EVERY)
    attention_mask = torch.arange(12)[None] >= torch.tensor([[0], [5]])
    padded_logits = policy.logits(INPUT_IDS, attention_mask, attention_mask)
    assert len(dtypes) >= 4 and set(dtypes) == {torch.float32}
    exact = load_policy(replace(CONFIG, path=path, autocast=False, **published.settings("llada")), seed=1)
    exact_padded_logits = exact.logits(INPUT_IDS, attention_mask, attention_mask)
    for one, other in (logits, exact.logits(INPUT_IDS, None, EVERY)), (padded_logits, exact_padded_logits):
        assert float((one - other).detach().abs().max()) < 0.05 * float(other.detach().abs().max())


def test_trainable_weights_are_not_rounded(path):
    policy = load_policy(replace(CONFIG, path=path, lora=None, **published.settings("llada")))
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
