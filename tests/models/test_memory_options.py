"""Dropout, gradient checkpointing, device map, attention and precision; none of them changes the logits."""

import pytest
import torch

from stipule.models.loading import LoRA, ModelConfig, load_policy
from stipule.rng import make_generator
from tests.models import published

INPUT_IDS = torch.tensor([[4, 5, 1, 6, 1], [7, 1, 8, 9, 4]])
EVERY = torch.ones_like(INPUT_IDS, dtype=torch.bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "llada"
    published.write("llada", path)
    return str(path)


def changed_adapters(folder, **lora):
    policy = load_policy(ModelConfig(path=folder, lora=LoRA(rank=2, alpha=4, **lora)))
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)
    return policy


def test_dropout_is_on_only_in_the_update_pass_and_depends_only_on_its_generator(folder):
    policy = changed_adapters(folder, dropout=0.5)
    with torch.no_grad():
        outside = policy.logits(INPUT_IDS, None, EVERY)
        state = torch.get_rng_state()
        with policy.update_mode(make_generator(0, 1, "dropout")):
            one = policy.logits(INPUT_IDS, None, EVERY)
        with policy.update_mode(make_generator(0, 1, "dropout")):
            again = policy.logits(INPUT_IDS, None, EVERY)
        with policy.update_mode(make_generator(0, 2, "dropout")):
            other = policy.logits(INPUT_IDS, None, EVERY)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(policy.logits(INPUT_IDS, None, EVERY), outside)
    assert torch.equal(one, again)
    assert not torch.allclose(one, outside, atol=1e-3)
    assert not torch.allclose(one, other, atol=1e-3)


def test_without_dropout_the_update_pass_gives_the_logits_of_sampling(folder):
    policy = changed_adapters(folder)
    with torch.no_grad(), policy.update_mode(make_generator(0, 1, "dropout")):
        inside = policy.logits(INPUT_IDS, None, EVERY)
    with torch.inference_mode():
        assert torch.equal(inside, policy.logits(INPUT_IDS, None, EVERY))


def test_dropout_of_a_published_config_is_off(tmp_path):
    published.write("bert", tmp_path / "bert")
    policy = load_policy(ModelConfig(path=str(tmp_path / "bert")))
    assert policy.published_config["hidden_dropout_prob"] == 0.1
    with torch.no_grad(), policy.update_mode(make_generator(0, 1, "dropout")):
        inside = policy.logits(INPUT_IDS, None, EVERY)
    with torch.no_grad():
        assert torch.equal(inside, policy.logits(INPUT_IDS, None, EVERY))


@pytest.mark.parametrize("lora", [True, False])
def test_gradient_checkpointing_computes_twice_and_gives_the_same_gradients(folder, lora):
    num_calls, gradients = {}, {}
    for checkpointing in (False, True):
        config = ModelConfig(
            path=folder, gradient_checkpointing=checkpointing, lora=LoRA(rank=2, alpha=4) if lora else None
        )
        policy = load_policy(config)
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
            policy.logits(INPUT_IDS, None, EVERY).log_softmax(1)[:, 5].sum().backward()
        parameters = policy.trainable_parameters()
        gradients[checkpointing] = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        num_calls[checkpointing] = len(calls)
        with torch.inference_mode():
            policy.logits(INPUT_IDS, None, EVERY)
        assert len(calls) == num_calls[checkpointing] + 1  # nothing is recomputed outside of the update pass
    assert num_calls == {False: 1, True: 2}
    assert gradients[False].keys() == gradients[True].keys() and gradients[False]
    for name, gradient in gradients[False].items():
        assert torch.allclose(gradient, gradients[True][name], atol=1e-6), name


@pytest.mark.parametrize("name", ["llada", "dream", "llada_moe", "modernbert"])
@pytest.mark.parametrize("setting", [{"device_map": "auto"}, {"attention": "eager"}, {"dtype": "bfloat16"}])
def test_device_map_attention_and_precision_keep_the_logits(tmp_path, name, setting):
    published.write(name, tmp_path / name)
    default = load_policy(ModelConfig(path=str(tmp_path / name)))
    other = load_policy(ModelConfig(path=str(tmp_path / name), **setting))
    with torch.no_grad():
        expected, logits = default.logits(INPUT_IDS, None, EVERY), other.logits(INPUT_IDS, None, EVERY)
    assert logits.dtype == torch.float32
    if "dtype" in setting:
        assert other.unwrapped_model.dtype == torch.bfloat16
        # A router may choose another expert if two are nearly equal, so only most logits must agree.
        assert ((logits - expected).abs() < 0.3).float().mean() > 0.9
    else:
        assert torch.allclose(expected, logits, atol=1e-4)
