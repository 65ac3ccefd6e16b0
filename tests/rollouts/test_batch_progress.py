"""Blocks, progress and cache slots of a batch, compared with loops over single tokens."""

import itertools

import pytest
import torch

from stipule.errors import RecipeError
from stipule.rollouts.anchors_from_text import anchors_from_text
from stipule.rollouts.batch_progress import BatchProgress
from stipule.rollouts.block_grid import block_grid, check_blocks, count_masks
from stipule.rollouts.cache_slots import CacheSlots
from stipule.rollouts.schedule import Cutoff, masks_of_rows, masks_per_block, num_blocks, unmask_schedule
from stipule.rollouts.unmasking import candidate_positions, rows_above_threshold, top_k_positions

LENGTH, STEPS, BLOCK = 12, 6, 4
ROWS = [(4, 4, 4), (3, 0, 4), (0, 2, 1), (4, 1, 4), (4, 4, 4)]


def progress_of(cutoff):
    return BatchProgress.from_masks(
        torch.tensor(ROWS), lambda masks: unmask_schedule(masks, LENGTH, STEPS, BLOCK, cutoff)
    )


def blocks_of(masks):
    """The block of each mask, from the left."""
    return [block for block, count in enumerate(masks) for _ in range(count)]


@pytest.mark.parametrize(("window", "within_block"), list(itertools.product((0, 3, 5), (False, True))))
@pytest.mark.parametrize("cutoff", [Cutoff(), Cutoff(0.25), Cutoff(0.25, tail="sample")])
def test_the_next_call_is_read_off_the_list_of_masks(cutoff, window, within_block):
    progress = progress_of(cutoff)
    assert progress.num_masked.tolist() == [sum(row) for row in ROWS]
    for row, masks in enumerate(ROWS):
        schedule = unmask_schedule(masks, LENGTH, STEPS, BLOCK, cutoff)
        unmasked = 0
        for step, tokens in enumerate(schedule.num_transfer_tokens):
            index, counts = torch.tensor([row]), torch.tensor([unmasked])
            left = blocks_of(masks)[unmasked:]
            for calls in (torch.tensor([step]), None):
                call = progress.next_call(index, counts, calls, window, within_block)
                finish = len(left) <= window
                lookahead = len(left) if finish else tokens
                if within_block:
                    lookahead = min(lookahead, left.count(left[0]))
                assert call.num_transfer_tokens.tolist() == [tokens]
                assert call.is_argmax.tolist() == [schedule.argmax[step]]
                assert call.num_masked.tolist() == [len(left)]
                assert call.may_finish.tolist() == [finish]
                assert call.lookahead.tolist() == [lookahead]
                assert call.block_index.tolist() == [left[0]]
                assert call.inside_block.tolist() == [lookahead <= left.count(left[0])]
            read = set(left[:lookahead])
            assert progress.num_candidates(index, counts, call.lookahead) == sum(block in read for block in left)
            unmasked += tokens
        assert unmasked == sum(masks)


def test_a_row_ahead_of_its_schedule_continues_with_the_next_call_that_unmasks_something():
    progress = progress_of(Cutoff())  # two tokens in each call
    call = progress.next_call(torch.tensor([0, 4]), torch.tensor([3, 5]), None, 0)
    assert call.num_transfer_tokens.tolist() == [1, 1]
    one = call[torch.tensor([False, True])]
    assert (one.num_masked.tolist(), one.block_index.tolist()) == ([7], [1])


def test_full_blocks_are_counted_from_the_left_after_the_first_call():
    progress = progress_of(Cutoff())
    for row, masks in enumerate(ROWS):
        for unmasked in range(sum(masks) + 1):
            left = blocks_of(masks)[unmasked:]
            full = 0 if unmasked == 0 else (left[0] if left else len(masks))
            counted = progress.num_completed_blocks(torch.tensor([row]), torch.tensor([unmasked]))
            assert counted.tolist() == [full], (masks, unmasked)


def test_a_batch_without_rows_has_no_schedule():
    progress = BatchProgress.from_masks(torch.zeros(0, 3, dtype=torch.long), lambda masks: None)
    assert progress.unmasked_after.shape == progress.is_argmax.shape == (0, 0)


@pytest.mark.parametrize("begins_at_prompt", [False, True])
def test_the_grid_begins_at_the_response_or_at_the_prompt(begins_at_prompt):
    lengths = (1, 3, 4, 6)
    prompt_mask = torch.tensor([[column >= 6 - n for column in range(6)] for n in lengths])
    grid = block_grid(prompt_mask, 8, 4, begins_at_prompt)
    for row, n in enumerate(lengths):
        first = n // 4 if begins_at_prompt else 0
        expected = [((n + i) // 4 - first) if begins_at_prompt else i // 4 for i in range(8)]
        assert grid[row].tolist() == expected
    most = num_blocks(8, 4, begins_at_prompt)
    assert most == int(grid.max()) + 1
    masked = torch.rand(4, 8, generator=torch.Generator().manual_seed(0)) < 0.6
    counts = [
        [sum(b == block and m for b, m in zip(*row, strict=True)) for block in range(most)]
        for row in zip(grid.tolist(), masked.tolist(), strict=True)
    ]
    assert count_masks(masked, grid, most).tolist() == counts


def test_a_grid_of_single_tokens_never_begins_inside_a_block():
    assert (num_blocks(8, 1, True), num_blocks(8, 1, False), num_blocks(8, 2, True)) == (8, 8, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, "separate", None), "sampler.block_schedule is separate, .* set sampler.block_schedule=carry"),
        ((4, "carry", 4), "blocks of 4 tokens.*sampler.block_length=4 and sampler.block_schedule=separate"),
        ((8, "separate", 4), "sampler has block_length 8 and block_schedule separate"),
    ],
)
def test_only_the_blocks_of_the_model_are_accepted(arguments, message):
    with pytest.raises(RecipeError, match=message):
        check_blocks(*arguments)
    assert check_blocks(4, "separate", 4) is check_blocks(4, "carry", None) is None


def test_each_row_of_a_call_has_a_cache_slot_of_its_own():
    slots = CacheSlots(5, 2)
    assert (slots.count, CacheSlots(5, None).count, CacheSlots(2, 5).count) == (2, 5, 2)
    every = torch.arange(5)
    assert slots[every].tolist() == [-1] * 5
    slots.take(torch.tensor([0, 3]))
    assert sorted(slots[torch.tensor([0, 3])].tolist()) == [0, 1]
    kept = slots[torch.tensor([3])].tolist()
    slots.take(torch.tensor([3]))
    slots.release(torch.tensor([0, 4]))  # the last row has none
    slots.take(torch.tensor([1]))
    assert slots[torch.tensor([3])].tolist() == kept
    assert sorted(slots[torch.tensor([1, 3])].tolist()) == [0, 1]
    assert slots[torch.tensor([0, 2, 4])].tolist() == [-1] * 3


@pytest.mark.parametrize("anchors", range(13))
def test_evenly_spread_anchors_differ_by_at_most_one_between_blocks(anchors):
    masks = masks_per_block(12, 4, anchors)
    assert len(masks) == 3 and sum(masks) == 12 - anchors and max(masks) - min(masks) <= 1
    assert masks_of_rows(12, 4, anchors) == masks_of_rows(12, 4, anchors, "fixed") == [masks]
    rows = masks_of_rows(12, 4, anchors, "separate")
    assert len(rows) == 4
    for remainder, row in enumerate(rows):
        positions = {12 * i // anchors for i in range(anchors)}
        blocks = [(position + remainder) // 4 for position in range(12) if position not in positions]
        assert list(row) == [blocks.count(block) for block in range((remainder + 11) // 4 + 1)]


@pytest.mark.parametrize("cutoff", [Cutoff(), Cutoff(0.25), Cutoff(0.3, "block"), Cutoff(0.5, rounding="ceil")])
@pytest.mark.parametrize("masks", [(4, 4, 4), (3, 0, 4), (0, 2, 1), (0, 0, 0)])
def test_candidates_are_all_masks_of_the_blocks_that_a_call_reaches(masks, cutoff):
    schedule = unmask_schedule(masks, LENGTH, STEPS, BLOCK, cutoff)
    left = blocks_of(masks)
    for tokens, candidates in zip(schedule.num_transfer_tokens, schedule.num_candidates, strict=True):
        reached = set(left[:tokens])
        assert candidates == sum(block in reached for block in left)
        left = left[tokens:]
    assert not left


def test_positions_of_a_call_equal_loops_over_tokens():
    generator = torch.Generator().manual_seed(0)
    masked = torch.rand(40, 12, generator=generator) < 0.5
    lookahead = torch.randint(0, 6, (40,), generator=generator)
    shift = torch.randint(0, 4, (40, 1), generator=generator)
    grid = (torch.arange(12) + shift) // 4
    priority = torch.randint(0, 4, (40, 12), generator=generator) / 4
    candidates = candidate_positions(masked, lookahead, grid)
    chosen = top_k_positions(priority, candidates, grid, lookahead)
    for row in range(40):
        masks = [i for i in range(12) if masked[row, i]]
        reached = {int(grid[row, i]) for i in masks[: int(lookahead[row])]}
        expected = [i for i in masks if int(grid[row, i]) in reached]
        assert candidates[row].nonzero()[:, 0].tolist() == expected
        order = sorted(expected, key=lambda i: (int(grid[row, i]), -float(priority[row, i]), i))
        assert chosen[row].nonzero()[:, 0].tolist() == sorted(order[: int(lookahead[row])])


def test_a_row_is_above_the_threshold_if_all_its_positions_are():
    confidence, row = torch.tensor([0.9, 0.5, 0.7, 0.9, 0.1]), torch.tensor([0, 0, 1, 1, 2])
    rows = torch.tensor([True, True, True, False])
    assert rows_above_threshold(confidence, row, rows, 0.5).tolist() == [True, True, False, False]
    assert rows_above_threshold(confidence, row, rows, 0.6).tolist() == [False, True, False, False]
    assert rows_above_threshold(confidence, row, torch.tensor([False, True, True, True]), 0.0).tolist() == [
        False, True, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "count"), [([5, 6, 7, 8], 4), ([5, 6], 2), (list(range(10, 22)), 4)])
def test_anchors_from_a_text_keep_their_positions(text, count):
    anchors = anchors_from_text(text, 8, 0.5, 3, torch.Generator().manual_seed(0))
    assert anchors.token_ids.tolist() == [(text + [3] * 8)[:8]]
    assert int(anchors.fixed_mask.sum()) == count
    assert not bool(anchors.fixed_mask[0, len(text) :].any())
    drawn = {
        tuple(anchors_from_text([5] * 8, 8, 0.5, 3, torch.Generator().manual_seed(s)).fixed_mask[0].tolist())
        for s in range(9)
    }
    assert len(drawn) > 3
    with pytest.raises(RecipeError, match="the text of the anchors has no tokens"):
        anchors_from_text([], 8, 0.5, 3, torch.Generator())
