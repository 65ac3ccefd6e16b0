"""How a model is held: dropout, checkpointing, placement, precision; none of them changes what it says."""

import pytest
import torch

from stipule.models.loading import LoRA, ModelConfig, load_policy
from stipule.rng import make_generator
from tests.models import published

TOKENS = torch.tensor([[4, 5, 1, 6, 1], [7, 1, 8, 9, 4]])
EVERY = torch.ones_like(TOKENS, dtype=torch.bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("m") / "llada"
    published.write("llada", place)
    return str(place)


def stirred(folder, **lora):
    policy = load_policy(ModelConfig(path=folder, lora=LoRA(rank=2, alpha=4, **lora)))
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)
    return policy


def test_dropout_is_on_in_the_update_pass_alone_and_is_a_function_of_its_noise(folder):
    policy = stirred(folder, dropout=0.5)
    with torch.no_grad():
        plain = policy.logits(TOKENS, None, EVERY)
        state = torch.get_rng_state()
        with policy.update_mode(make_generator(0, 1, "dropout")):
            one = policy.logits(TOKENS, None, EVERY)
        with policy.update_mode(make_generator(0, 1, "dropout")):
            again = policy.logits(TOKENS, None, EVERY)
        with policy.update_mode(make_generator(0, 2, "dropout")):
            other = policy.logits(TOKENS, None, EVERY)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(policy.logits(TOKENS, None, EVERY), plain)
    assert torch.equal(one, again)
    assert not torch.allclose(one, plain, atol=1e-3)
    assert not torch.allclose(one, other, atol=1e-3)


def test_without_dropout_the_update_pass_is_the_sampling_pass(folder):
    policy = stirred(folder)
    with torch.no_grad(), policy.update_mode(make_generator(0, 1, "dropout")):
        inside = policy.logits(TOKENS, None, EVERY)
    with torch.inference_mode():
        assert torch.equal(inside, policy.logits(TOKENS, None, EVERY))


def test_dropouts_of_a_published_config_are_off(tmp_path):
    published.write("bert", tmp_path / "bert")
    policy = load_policy(ModelConfig(path=str(tmp_path / "bert")))
    assert policy.published_config["hidden_dropout_prob"] == 0.1
    with torch.no_grad(), policy.update_mode(make_generator(0, 1, "dropout")):
        inside = policy.logits(TOKENS, None, EVERY)
    with torch.no_grad():
        assert torch.equal(inside, policy.logits(TOKENS, None, EVERY))


@pytest.mark.parametrize("lora", [True, False])
def test_checkpointing_computes_twice_and_gives_the_same_gradients(folder, lora):
    found = {}
    for checkpointing in (False, True):
        choice = ModelConfig(
            path=folder, gradient_checkpointing=checkpointing, lora=LoRA(rank=2, alpha=4) if lora else None
        )
        policy = load_policy(choice)
        if not lora:
            policy.model.requires_grad_(True)
        calls = []
        layer = policy.unwrapped_model.base_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with torch.no_grad():
            for name, parameter in policy.trainable_parameters().items():
                if "lora_B" in name:
                    parameter.add_(0.05)
        with policy.update_mode(make_generator(0, 1, "dropout")):
            policy.logits(TOKENS, None, EVERY).log_softmax(1)[:, 5].sum().backward()
        gradients = {name: p.grad for name, p in policy.trainable_parameters().items() if p.grad is not None}
        found[checkpointing] = (len(calls), gradients)
        with torch.inference_mode():
            policy.logits(TOKENS, None, EVERY)
        assert len(calls) == found[checkpointing][0] + 1  # nothing is recomputed outside
    assert (found[False][0], found[True][0]) == (1, 2)
    assert found[False][1].keys() == found[True][1].keys() and found[False][1]
    for name, gradient in found[False][1].items():
        assert torch.allclose(gradient, found[True][1][name], atol=1e-6), name


@pytest.mark.parametrize("name", ["llada", "dream", "llada_moe", "modernbert"])
@pytest.mark.parametrize("choice", [{"device_map": "auto"}, {"attention": "eager"}, {"dtype": "bfloat16"}])
def test_placement_attention_and_precision_leave_the_logits(tmp_path, name, choice):
    published.write(name, tmp_path / name)
    plain = load_policy(ModelConfig(path=str(tmp_path / name)))
    other = load_policy(ModelConfig(path=str(tmp_path / name), **choice))
    with torch.no_grad():
        expected, found = plain.logits(TOKENS, None, EVERY), other.logits(TOKENS, None, EVERY)
    assert found.dtype == torch.float32
    if "dtype" in choice:
        assert other.unwrapped_model.dtype == torch.bfloat16
        # A router may send a token to another expert where two are nearly equal: most logits must agree.
        assert ((found - expected).abs() < 0.3).float().mean() > 0.9
    else:
        assert torch.allclose(expected, found, atol=1e-4)
