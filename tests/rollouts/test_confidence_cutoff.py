"""The cutoff by confidence, against the fixed cutoff and against no cutoff."""

from dataclasses import replace

import pytest
import torch

from stipule.errors import RecipeError
from stipule.rollouts.pruning import ConfidenceCutoff, FixedCutoff
from stipule.rollouts.sampler import Noise, SemiAutoregressiveSampler
from stipule.rollouts.schedule import unmask_schedule
from tests.rollouts.test_sampler import count_calls, no_noise
from tests.toys import anchored, prompts

SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=8, temperature=1.0, stop_at_eos=False)
REMASKING = pytest.mark.parametrize("remasking", ["low_confidence", "random"])


def same(one, other):
    exact = all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("completion_ids", "unmask_step", "nfe")
    )
    return exact and torch.allclose(one.confidence, other.confidence, atol=1e-5)  # a batch of another size rounds


@REMASKING
@pytest.mark.parametrize("num_anchors", [0, 3])
@pytest.mark.parametrize("steps", [16, 8])
def test_threshold_0_equals_the_fixed_cutoff(policy, remasking, num_anchors, steps):
    sampler = replace(SAMPLER, remasking=remasking, steps=steps)
    anchors, batch, noise = anchored(policy, 4, 16, num_anchors), prompts(policy, 4), no_noise(sampler, 4)
    cut = 5 / 16 if num_anchors else 4 / 16  # so that the tokens before the cut fill whole calls
    rollouts = sampler(policy, batch, noise, anchors, ConfidenceCutoff(cutoff=cut, threshold=0.0))
    assert same(rollouts, sampler(policy, batch, noise, anchors, FixedCutoff(cutoff=cut)))


@REMASKING
def test_a_threshold_that_no_row_reaches_prunes_nothing(policy, remasking):
    sampler = replace(SAMPLER, remasking=remasking)
    batch, noise = prompts(policy, 4), no_noise(sampler, 4)
    unpruned = sampler(policy, batch, noise)
    assert same(sampler(policy, batch, noise, None, ConfidenceCutoff(cutoff=0.0, threshold=0.0)), unpruned)
    assert same(sampler(policy, batch, noise, None, ConfidenceCutoff(cutoff=0.5, threshold=1.0)), unpruned)


@REMASKING
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_a_row_ends_at_the_first_call_in_which_all_masked_tokens_reach_the_threshold(policy, remasking, threshold):
    """Recomputes the state before each call from the unpruned rollout, and the confidence of every masked token."""
    rows, within = 12, 6
    sampler = replace(SAMPLER, remasking=remasking)
    batch, noise = prompts(policy, rows), no_noise(sampler, rows)
    unpruned = sampler(policy, batch, noise)
    rollouts = sampler(policy, batch, noise, None, ConfidenceCutoff(cutoff=within / 16, threshold=threshold))
    attention_mask = torch.cat([batch.prompt_mask, torch.ones(rows, 16, dtype=torch.bool)], 1)
    for row in range(rows):
        for call in range(16):
            left = unpruned.unmask_step[row] >= call
            canvas = torch.cat([batch.prompt_ids[row], unpruned.completion_ids[row].masked_fill(left, policy.mask_id)])
            position_mask = torch.cat([torch.zeros_like(batch.prompt_mask[row]), left])
            with torch.no_grad():
                logits = policy.logits(canvas[None], attention_mask[row : row + 1], position_mask[None])
            logits[:, policy.mask_id] = -torch.inf
            confidence = logits.softmax(1).amax(1)
            if int(left.sum()) <= within and bool((confidence >= threshold).all()):
                assert rollouts.completion_ids[row][left].tolist() == logits.argmax(1).tolist()
                break
        assert int(rollouts.nfe[row]) == call + 1
        assert torch.equal(rollouts.completion_ids[row][~left], unpruned.completion_ids[row][~left])
    assert len(set(rollouts.nfe.tolist())) > 1  # the cutoff differs between rows
    assert bool((rollouts.nfe < 16).any())


@REMASKING
def test_a_row_does_not_depend_on_its_batch_mates(policy, remasking):
    sampler, pruned = replace(SAMPLER, remasking=remasking), ConfidenceCutoff(cutoff=0.4, threshold=0.4)
    batch, noise = prompts(policy, 6), no_noise(sampler, 6)
    together = sampler(policy, batch, noise, None, pruned)
    assert same(sampler(policy, batch, noise, None, pruned, max_batch_size=2), together)
    for row in range(6):
        one = Noise(noise.uniform[:, row : row + 1], noise.position_noise[row : row + 1])
        alone = sampler(policy, batch[row : row + 1], one, None, pruned)
        assert alone.completion_ids[0].tolist() == together.completion_ids[row].tolist()
        assert alone.nfe[0] == together.nfe[row]


@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 4), (24, 18, 8), (16, 4, 16)])
@pytest.mark.parametrize("num_anchors", [0, 5])
def test_no_row_needs_more_calls_than_planned_or_cuts_more_than_the_cutoff(policy, length, steps, block, num_anchors):
    sampler = SemiAutoregressiveSampler(gen_length=length, steps=steps, block_length=block, temperature=1.0)
    pruned, anchors = ConfidenceCutoff(cutoff=0.3, threshold=0.3), anchored(policy, 8, length, num_anchors)
    with count_calls(policy) as calls:
        rollouts = sampler(policy, prompts(policy, 8), no_noise(sampler, 8), anchors, pruned)
    masks = (~anchors.fixed_mask).unflatten(1, (-1, block)).sum(2).tolist()
    planned = [unmask_schedule(tuple(row), length, steps, block, pruned.planned_cutoff).nfe for row in masks]
    assert all(nfe <= planned_nfe for nfe, planned_nfe in zip(rollouts.nfe.tolist(), planned, strict=True))
    assert calls.count == int(rollouts.nfe.max())
    assert bool((rollouts.completion_ids != policy.mask_id).all())
    last = (rollouts.unmask_step == rollouts.nfe[:, None] - 1) & (rollouts.confidence > 0)
    assert int(last.sum(1).max()) <= max(int(0.3 * length), -(-length // steps))


def test_settings_out_of_range_are_refused():
    with pytest.raises(RecipeError, match="threshold is 1.2"):
        ConfidenceCutoff(threshold=1.2)
    with pytest.raises(RecipeError, match="cutoff is 1"):
        ConfidenceCutoff(cutoff=1)
