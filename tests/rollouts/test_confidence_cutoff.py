"""The cut-off that each row's confidence decides, against the constant one and no cut at all."""

from dataclasses import replace

import pytest
import torch

from stipule.errors import RecipeError
from stipule.rollouts.sampler import SemiAutoregressiveSampler, Noise
from stipule.rollouts.pruning import ConfidenceCutoff, FixedCutoff
from stipule.rollouts.schedule import unmask_schedule
from tests.rollouts.test_sampler import count_calls, no_noise
from tests.toys import anchored, prompts

SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=8, temperature=1.0, stop_at_eos=False)
ORDERS = pytest.mark.parametrize("order", ["low_confidence", "random"])


def same(one, other):
    exact = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("completion_ids", "unmask_step", "nfe"))
    return exact and torch.allclose(one.confidence, other.confidence, atol=1e-5)  # a batch of another size rounds


@ORDERS
@pytest.mark.parametrize("anchors", [0, 3])
@pytest.mark.parametrize("steps", [16, 8])
def test_any_confidence_is_the_constant_cut_off(policy, order, anchors, steps):
    sampler = replace(SAMPLER, remasking=order, steps=steps)
    placed, asked, noise = anchored(policy, 4, 16, anchors), prompts(policy, 4), no_noise(sampler, 4)
    cut = 5 / 16 if anchors else 4 / 16  # so that what is committed before the cut fills its calls
    found = sampler(policy, asked, noise, placed, ConfidenceCutoff(cutoff=cut, threshold=0.0))
    assert same(found, sampler(policy, asked, noise, placed, FixedCutoff(cutoff=cut)))


@ORDERS
def test_certainty_that_no_row_has_prunes_nothing(policy, order):
    sampler = replace(SAMPLER, remasking=order)
    asked, noise = prompts(policy, 4), no_noise(sampler, 4)
    unpruned = sampler(policy, asked, noise)
    assert same(sampler(policy, asked, noise, None, ConfidenceCutoff(cutoff=0.0, threshold=0.0)), unpruned)
    assert same(sampler(policy, asked, noise, None, ConfidenceCutoff(cutoff=0.5, threshold=1.0)), unpruned)


@ORDERS
@pytest.mark.parametrize("at_least", [0.3, 0.5])
def test_a_row_ends_at_the_first_call_at_which_it_is_sure_of_all_that_is_left(policy, order, at_least):
    """Re-read from the unpruned rollout: the state before each call, and the model's word on every mask in it."""
    rows, within = 12, 6
    sampler = replace(SAMPLER, remasking=order)
    asked, noise = prompts(policy, rows), no_noise(sampler, rows)
    unpruned = sampler(policy, asked, noise)
    found = sampler(policy, asked, noise, None, ConfidenceCutoff(cutoff=within / 16, threshold=at_least))
    attend = torch.cat([asked.prompt_mask, torch.ones(rows, 16, dtype=torch.bool)], 1)
    for row in range(rows):
        for call in range(16):
            left = unpruned.unmask_step[row] >= call
            canvas = torch.cat([asked.prompt_ids[row], unpruned.completion_ids[row].masked_fill(left, policy.mask_id)])
            at = torch.cat([torch.zeros_like(asked.prompt_mask[row]), left])
            with torch.no_grad():
                logits = policy.logits(canvas[None], attend[row : row + 1], at[None])
            logits[:, policy.mask_id] = -torch.inf
            sure = logits.softmax(1).amax(1)
            if int(left.sum()) <= within and bool((sure >= at_least).all()):
                assert found.completion_ids[row][left].tolist() == logits.argmax(1).tolist()
                break
        assert int(found.nfe[row]) == call + 1
        assert torch.equal(found.completion_ids[row][~left], unpruned.completion_ids[row][~left])
    assert len(set(found.nfe.tolist())) > 1  # rows differ, or nothing was decided
    assert bool((found.nfe < 16).any())


@ORDERS
def test_a_row_does_not_depend_on_its_batch_mates(policy, order):
    sampler, pruned = replace(SAMPLER, remasking=order), ConfidenceCutoff(cutoff=0.4, threshold=0.4)
    asked, noise = prompts(policy, 6), no_noise(sampler, 6)
    together = sampler(policy, asked, noise, None, pruned)
    assert same(sampler(policy, asked, noise, None, pruned, max_batch_size=2), together)
    for row in range(6):
        one = Noise(noise.uniform[:, row : row + 1], noise.order[row : row + 1])
        alone = sampler(policy, asked[row : row + 1], one, None, pruned)
        assert alone.completion_ids[0].tolist() == together.completion_ids[row].tolist()
        assert alone.nfe[0] == together.nfe[row]


@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 4), (24, 18, 8), (16, 4, 16)])
@pytest.mark.parametrize("anchors", [0, 5])
def test_no_row_takes_more_calls_than_planned_nor_fills_more_than_its_share(policy, length, steps, block, anchors):
    sampler = SemiAutoregressiveSampler(gen_length=length, steps=steps, block_length=block, temperature=1.0)
    pruned, placed = ConfidenceCutoff(cutoff=0.3, threshold=0.3), anchored(policy, 8, length, anchors)
    with count_calls(policy) as calls:
        found = sampler(policy, prompts(policy, 8), no_noise(sampler, 8), placed, pruned)
    masks = (~placed.fixed_mask).unflatten(1, (-1, block)).sum(2).tolist()
    planned = [unmask_schedule(tuple(row), length, steps, block, *pruned.planned_cutoff).nfe for row in masks]
    assert all(spent <= most for spent, most in zip(found.nfe.tolist(), planned, strict=True))
    assert calls.count == int(found.nfe.max())
    assert bool((found.completion_ids != policy.mask_id).all())
    last = (found.unmask_step == found.nfe[:, None] - 1) & (found.confidence > 0)
    assert int(last.sum(1).max()) <= max(int(0.3 * length), -(-length // steps))


def test_settings_out_of_range_are_refused():
    with pytest.raises(RecipeError, match="at_least is 1.2"):
        ConfidenceCutoff(threshold=1.2)
    with pytest.raises(RecipeError, match="cutoff is 1"):
        ConfidenceCutoff(cutoff=1)
