"""Merged adapters: the same responses, and nothing left behind."""

import torch

from stipule.models.loading import LoRA, ModelChoice, load_policy, save_policy
from stipule.models.merging import merged
from stipule.rollouts.denoise import BlockDenoiser
from tests.toys import prompts, random_policy


def test_merged_adapters_change_no_token_and_leave_every_bit(tmp_path):
    save_policy(random_policy(), tmp_path / "base", "x")

    policy = load_policy(ModelChoice(path=str(tmp_path / "base"), lora=LoRA(rank=4, alpha=8), attention="eager"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:  # zero at the start: then there is nothing to merge
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    trainable = list(policy.trainable())
    asked, sampler = prompts(policy, 6), BlockDenoiser(length=12, steps=6, block=6, temperature=1.0)
    noise = sampler.draw(6, torch.Generator().manual_seed(0))
    plain = sampler(policy, asked, noise)
    adapters = [m for m in policy.model.modules() if type(m).__name__ == "Linear" and hasattr(m, "lora_A")]
    asked_of = []
    hook = adapters[0].lora_A["default"].register_forward_hook(lambda *_: asked_of.append(1))
    with merged(policy):
        found = sampler(policy, asked, noise)
    hook.remove()
    assert not asked_of  # no adapter was called
    with policy.reference():
        bare = sampler(policy, asked, noise)
    assert torch.equal(found.tokens, plain.tokens)
    assert torch.allclose(found.confidence, plain.confidence, atol=1e-5)
    assert not torch.equal(bare.tokens, plain.tokens)  # the adapters do matter
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.model.state_dict().items())
    assert list(policy.trainable()) == trainable


def test_what_would_lose_precision_is_not_merged(tmp_path):
    save_policy(random_policy(), tmp_path / "base", "x")

    policy = load_policy(ModelChoice(path=str(tmp_path / "base"), lora=LoRA(rank=4, alpha=8)))
    policy.autocast = True
    weight = next(m for m in policy.model.modules() if hasattr(m, "lora_A")).get_base_layer().weight
    before = weight.data_ptr()
    with merged(policy):
        assert weight.data_ptr() == before
    policy.autocast = False
    with merged(policy):
        assert weight.data_ptr() != before
    assert weight.data_ptr() == before
