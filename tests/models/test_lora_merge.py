"""Merged adapters: the same responses, and nothing left behind."""

import torch

from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from stipule.models.lora_merge import merged_adapters
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.toys import prompts, random_policy


def test_merged_adapters_change_no_token_and_leave_every_bit(tmp_path):
    save_policy(random_policy(), tmp_path / "base", "x")

    policy = load_policy(ModelConfig(path=str(tmp_path / "base"), lora=LoRA(rank=4, alpha=8), attention="eager"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.trainable_parameters().items():
        if "lora_B" in name:  # zero at the start: then there is nothing to merge
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    trainable = list(policy.trainable_parameters())
    asked, sampler = (
        prompts(policy, 6),
        SemiAutoregressiveSampler(gen_length=12, steps=6, block_length=6, temperature=1.0),
    )
    noise = sampler.sample_noise(6, torch.Generator().manual_seed(0))
    plain = sampler(policy, asked, noise)
    adapters = [m for m in policy.model.modules() if type(m).__name__ == "Linear" and hasattr(m, "lora_A")]
    asked_of = []
    hook = adapters[0].lora_A["default"].register_forward_hook(lambda *_: asked_of.append(1))
    with merged_adapters(policy):
        found = sampler(policy, asked, noise)
    hook.remove()
    assert not asked_of  # no adapter was called
    with policy.reference():
        bare = sampler(policy, asked, noise)
    assert torch.equal(found.completion_ids, plain.completion_ids)
    assert torch.allclose(found.confidence, plain.confidence, atol=1e-5)
    assert not torch.equal(bare.completion_ids, plain.completion_ids)  # the adapters do matter
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.model.state_dict().items())
    assert list(policy.trainable_parameters()) == trainable


def test_what_would_lose_precision_is_not_merged(tmp_path):
    save_policy(random_policy(), tmp_path / "base", "x")

    policy = load_policy(ModelConfig(path=str(tmp_path / "base"), lora=LoRA(rank=4, alpha=8)))
    policy.autocast = True
    weight = next(m for m in policy.model.modules() if hasattr(m, "lora_A")).get_base_layer().weight
    before = weight.data_ptr()
    with merged_adapters(policy):
        assert weight.data_ptr() == before
    policy.autocast = False
    with merged_adapters(policy):
        assert weight.data_ptr() != before
    assert weight.data_ptr() == before
