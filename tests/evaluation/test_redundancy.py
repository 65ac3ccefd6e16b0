"""How open a token is when it is unmasked: against a plain loop over rows and tokens."""

from dataclasses import replace

import pytest
import torch

from stipule.evaluation.redundancy import measure_openness
from stipule.rollouts.pruning import FixedCutoff
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.toys import anchored, prompts

SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=8, block_length=8, temperature=1.5, stop_at_eos=False)


def test_each_token_is_compared_with_the_distribution_that_it_was_drawn_from(policy):
    batch = prompts(policy, 3)
    noise = SAMPLER.sample_noise(3, torch.Generator().manual_seed(0))
    rollouts = SAMPLER(policy, batch, noise, anchored(policy, 3, 16, 2), FixedCutoff(cutoff=0.25, tail="sample"))
    openness = measure_openness(policy, rollouts)
    for row in range(3):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        for position in range(16):
            if not rollouts.sampled_mask[row, position]:
                continue
            masked = rollouts.unmask_step[row] >= rollouts.unmask_step[row, position]
            x = torch.cat([prompt, rollouts.completion_ids[row].masked_fill(masked, policy.mask_id)])[None]
            logits = policy.logits(x, None, torch.ones_like(x, dtype=torch.bool))[len(prompt) + position]
            logits[policy.unsampled_ids] = -torch.inf
            p = logits.detach().softmax(0)
            assert openness.is_argmax[row, position] == (p.argmax() == rollouts.completion_ids[row, position])
            entropy = -sum(float(q) * float(q.log()) for q in p if q > 0)
            assert float(openness.entropy[row, position]) == pytest.approx(entropy, abs=1e-4)
            assert float(openness.masked_fraction[row, position]) == pytest.approx(int(masked.sum()) / 16)


def test_greedy_rollouts_take_the_argmax_everywhere(policy):
    sampler = replace(SAMPLER, temperature=0.0)
    rollouts = sampler(policy, prompts(policy, 3), sampler.sample_noise(3, torch.Generator().manual_seed(0)))
    assert measure_openness(policy, rollouts).is_argmax.all()
