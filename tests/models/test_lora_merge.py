"""Merged adapters give the same responses, and the weights are restored afterwards."""

import torch

from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from stipule.models.lora_merge import merged_adapters
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.toys import prompts, random_policy


def test_merged_adapters_change_no_token_and_all_weights_are_restored(tmp_path):
    save_policy(random_policy(), tmp_path / "base", "x")

    policy = load_policy(ModelConfig(path=str(tmp_path / "base"), lora=LoRA(rank=4, alpha=8), attention="eager"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.trainable_parameters().items():
        if "lora_B" in name:  # 0 at the start, so merging would change nothing
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    names = list(policy.trainable_parameters())
    batch = prompts(policy, 6)
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=6, block_length=6, temperature=1.0)
    noise = sampler.sample_noise(6, torch.Generator().manual_seed(0))
    separate = sampler(policy, batch, noise)
    adapters = [m for m in policy.model.modules() if type(m).__name__ == "Linear" and hasattr(m, "lora_A")]
    adapter_calls = []
    hook = adapters[0].lora_A["default"].register_forward_hook(lambda *_: adapter_calls.append(1))
    with merged_adapters(policy):
        merged = sampler(policy, batch, noise)
    hook.remove()
    assert not adapter_calls
    with policy.reference():
        base = sampler(policy, batch, noise)
    assert torch.equal(merged.completion_ids, separate.completion_ids)
    assert torch.allclose(merged.confidence, separate.confidence, atol=1e-5)
    assert not torch.equal(base.completion_ids, separate.completion_ids)  # the adapters change the responses
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.model.state_dict().items())
    assert list(policy.trainable_parameters()) == names


def test_adapters_are_not_merged_if_that_loses_precision(tmp_path):
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
