"""Chunked log-probabilities equal those of the full softmax."""

import torch

from stipule.estimators import token_logps as module
from stipule.estimators.elbo import Elbo
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.toys import prompts


def sampled_rollouts(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=6, block_length=6, temperature=1.0)
    return sampler(policy, prompts(policy), sampler.sample_noise(3, torch.Generator().manual_seed(0)))


def test_log_probabilities_are_those_of_the_full_softmax(policy):
    rollouts = sampled_rollouts(policy)
    (mask_samples,) = Elbo().sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = module.masked_token_logps(policy, rollouts, mask_samples)
        for k in range(3):
            canvas = rollouts.completion_ids.masked_fill(mask_samples.masked[k], policy.mask_id)
            attention_mask = torch.cat([rollouts.prompt_mask, torch.ones_like(mask_samples.masked[k])], 1)
            logits = policy.unwrapped_model(
                input_ids=torch.cat([rollouts.prompt_ids, canvas], 1),
                attention_mask=attention_mask,
                position_ids=(attention_mask.long().cumsum(1) - 1).clamp(min=0),
            ).logits[:, -12:]
            plain = logits.log_softmax(2).gather(2, rollouts.completion_ids[:, :, None])[:, :, 0]
            assert torch.allclose(result[k], plain * mask_samples.masked[k], atol=1e-4)


def test_chunks_change_neither_value_nor_gradient(policy, monkeypatch):
    rollouts = sampled_rollouts(policy)
    (mask_samples,) = Elbo().sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    policy.model.requires_grad_(True)

    def value_and_gradient():
        policy.model.zero_grad()
        logp = module.masked_token_logps(policy, rollouts, mask_samples)
        logp.sum().backward()
        return logp.detach(), [p.grad.clone() for p in policy.model.parameters()]

    whole, gradients = value_and_gradient()
    monkeypatch.setattr(module, "MAX_LOGITS", 7 * policy.vocab_size)
    chunked, again = value_and_gradient()
    assert torch.allclose(whole, chunked, atol=1e-5)
    for one, other in zip(gradients, again, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_a_frozen_lm_head_gives_the_same_value_and_gradient(policy, monkeypatch):
    rollouts = sampled_rollouts(policy)
    (mask_samples,) = Elbo().sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    policy.model.requires_grad_(True)
    lm_head = policy.unwrapped_model.get_output_embeddings()
    backbone = [p for name, p in policy.model.named_parameters() if "lm_head" not in name]

    def value_and_gradient(chunk):
        monkeypatch.setattr(module, "MAX_LOGITS", chunk * policy.vocab_size)
        policy.model.zero_grad()
        logp = module.masked_token_logps(policy, rollouts, mask_samples)
        (logp * (1 + torch.arange(logp.numel()).view(logp.shape) % 3)).sum().backward()
        return logp.detach(), [p.grad.clone() for p in backbone]

    trained, gradients = value_and_gradient(1000)
    lm_head.requires_grad_(False)
    try:
        for chunk in (1000, 7):
            frozen, again = value_and_gradient(chunk)
            assert torch.allclose(trained, frozen, atol=1e-5)
            for one, other in zip(gradients, again, strict=True):
                assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    finally:
        lm_head.requires_grad_(True)
