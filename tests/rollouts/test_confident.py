"""The cut-off that each row's confidence decides, against the constant one and no cut at all."""

from dataclasses import replace

import pytest
import torch

from stipule.errors import RecipeError
from stipule.rollouts.denoise import BlockDenoiser, Noise
from stipule.rollouts.pruning import Confident, Temporal
from stipule.rollouts.schedule import plan
from tests.rollouts.test_denoise import count_calls, no_noise
from tests.toys import anchored, prompts

SAMPLER = BlockDenoiser(length=16, steps=16, block=8, temperature=1.0, early_end=False)
ORDERS = pytest.mark.parametrize("order", ["low_confidence", "random"])


def same(one, other):
    exact = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("tokens", "revealed", "forwards"))
    return exact and torch.allclose(one.confidence, other.confidence, atol=1e-5)  # a batch of another size rounds


@ORDERS
@pytest.mark.parametrize("anchors", [0, 3])
@pytest.mark.parametrize("steps", [16, 8])
def test_any_confidence_is_the_constant_cut_off(policy, order, anchors, steps):
    sampler = replace(SAMPLER, order=order, steps=steps)
    placed, asked, noise = anchored(policy, 4, 16, anchors), prompts(policy, 4), no_noise(sampler, 4)
    cut = 5 / 16 if anchors else 4 / 16  # so that what is committed before the cut fills its calls
    found = sampler(policy, asked, noise, placed, Confident(cutoff=cut, at_least=0.0))
    assert same(found, sampler(policy, asked, noise, placed, Temporal(cutoff=cut)))


@ORDERS
def test_certainty_that_no_row_has_prunes_nothing(policy, order):
    sampler = replace(SAMPLER, order=order)
    asked, noise = prompts(policy, 4), no_noise(sampler, 4)
    unpruned = sampler(policy, asked, noise)
    assert same(sampler(policy, asked, noise, None, Confident(cutoff=0.0, at_least=0.0)), unpruned)
    assert same(sampler(policy, asked, noise, None, Confident(cutoff=0.5, at_least=1.0)), unpruned)


@ORDERS
@pytest.mark.parametrize("at_least", [0.3, 0.5])
def test_a_row_ends_at_the_first_call_at_which_it_is_sure_of_all_that_is_left(policy, order, at_least):
    """Re-read from the unpruned rollout: the state before each call, and the model's word on every mask in it."""
    rows, within = 12, 6
    sampler = replace(SAMPLER, order=order)
    asked, noise = prompts(policy, rows), no_noise(sampler, rows)
    unpruned = sampler(policy, asked, noise)
    found = sampler(policy, asked, noise, None, Confident(cutoff=within / 16, at_least=at_least))
    attend = torch.cat([asked.mask, torch.ones(rows, 16, dtype=torch.bool)], 1)
    for row in range(rows):
        for call in range(16):
            left = unpruned.revealed[row] >= call
            canvas = torch.cat([asked.tokens[row], unpruned.tokens[row].masked_fill(left, policy.mask_id)])
            at = torch.cat([torch.zeros_like(asked.mask[row]), left])
            with torch.no_grad():
                logits = policy.logits(canvas[None], attend[row : row + 1], at[None])
            logits[:, policy.mask_id] = -torch.inf
            sure = logits.softmax(1).amax(1)
            if int(left.sum()) <= within and bool((sure >= at_least).all()):
                assert found.tokens[row][left].tolist() == logits.argmax(1).tolist()
                break
        assert int(found.forwards[row]) == call + 1
        assert torch.equal(found.tokens[row][~left], unpruned.tokens[row][~left])
    assert len(set(found.forwards.tolist())) > 1  # rows differ, or nothing was decided
    assert bool((found.forwards < 16).any())


@ORDERS
def test_a_row_does_not_depend_on_its_batch_mates(policy, order):
    sampler, pruned = replace(SAMPLER, order=order), Confident(cutoff=0.4, at_least=0.4)
    asked, noise = prompts(policy, 6), no_noise(sampler, 6)
    together = sampler(policy, asked, noise, None, pruned)
    assert same(sampler(policy, asked, noise, None, pruned, at_once=2), together)
    for row in range(6):
        one = Noise(noise.uniform[:, row : row + 1], noise.order[row : row + 1])
        alone = sampler(policy, asked[row : row + 1], one, None, pruned)
        assert alone.tokens[0].tolist() == together.tokens[row].tolist()
        assert alone.forwards[0] == together.forwards[row]


@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 4), (24, 18, 8), (16, 4, 16)])
@pytest.mark.parametrize("anchors", [0, 5])
def test_no_row_takes_more_calls_than_planned_nor_fills_more_than_its_share(policy, length, steps, block, anchors):
    sampler = BlockDenoiser(length=length, steps=steps, block=block, temperature=1.0)
    pruned, placed = Confident(cutoff=0.3, at_least=0.3), anchored(policy, 8, length, anchors)
    with count_calls(policy) as calls:
        found = sampler(policy, prompts(policy, 8), no_noise(sampler, 8), placed, pruned)
    masks = (~placed.fixed).unflatten(1, (-1, block)).sum(2).tolist()
    planned = [plan(tuple(row), length, steps, block, *pruned.planned).forwards for row in masks]
    assert all(spent <= most for spent, most in zip(found.forwards.tolist(), planned, strict=True))
    assert calls.count == int(found.forwards.max())
    assert bool((found.tokens != policy.mask_id).all())
    last = (found.revealed == found.forwards[:, None] - 1) & (found.confidence > 0)
    assert int(last.sum(1).max()) <= max(int(0.3 * length), -(-length // steps))


def test_settings_out_of_range_are_refused():
    with pytest.raises(RecipeError, match="at_least is 1.2"):
        Confident(at_least=1.2)
    with pytest.raises(RecipeError, match="cutoff is 1"):
        Confident(cutoff=1)
