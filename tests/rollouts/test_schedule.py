"""The unmask schedule against Theorem 4.1 and against LLaDA's block schedule."""

import itertools
import math

import pytest

from stipule.errors import RecipeError
from stipule.rollouts.schedule import (
    Cutoff,
    check_sizes,
    floor_fraction,
    llada_transfer_schedule,
    num_anchors,
    transfer_schedule,
    unmask_schedule,
)


def masks(length, block, fixed):
    """Masked tokens per block with `fixed` anchors at the leftmost positions."""
    return tuple(block - min(block, max(0, fixed - start)) for start in range(0, length, block))


@pytest.mark.parametrize(
    ("gamma", "cutoff", "calls"),
    [(0.05, 0, 122), (0.10, 0, 115), (0, 0.05, 123), (0, 0.10, 117), (0.05, 0.05, 117), (0, 0, 128)],
)
def test_forward_passes_at_llada_sizes_equal_theorem_4_1(gamma, cutoff, calls):
    schedule = unmask_schedule(masks(256, 32, num_anchors(gamma, 256)), 256, 128, 32, Cutoff(cutoff, "global"))
    assert schedule.nfe == calls


GRID = [
    (length, steps, block)
    for length, block in [(8, 8), (8, 4), (12, 4), (24, 8), (32, 8), (32, 32), (256, 32)]
    for steps in (length, length // 2, length // 4, 3 * length // 4)
    if steps and steps % (length // block) == 0
]


@pytest.mark.parametrize(("length", "steps", "block"), GRID)
def test_calls_equal_the_closed_form_for_any_anchor_positions(length, steps, block):
    for fixed, cutoff in itertools.product(range(0, length + 1, max(1, length // 8)), (0, 0.05, 0.125, 0.3)):
        left = length - fixed
        cut = math.floor(cutoff * length + 1e-9)
        closed = math.ceil(max(0, left - cut) * steps / length) + (1 if min(left, cut) > 0 else 0)
        leftmost = masks(length, block, fixed)
        for layout in {leftmost, tuple(reversed(leftmost))}:
            schedule = unmask_schedule(layout, length, steps, block, Cutoff(cutoff, "global"))
            assert schedule.nfe == closed
            assert sum(schedule.num_transfer_tokens) == left
            assert min(schedule.num_transfer_tokens, default=1) >= 1  # no call is wasted
            assert schedule.argmax == tuple(i == closed - 1 and min(left, cut) > 0 for i in range(closed))
            assert all(
                width >= transfer
                for width, transfer in zip(schedule.num_candidates, schedule.num_transfer_tokens, strict=True)
            )


@pytest.mark.parametrize(("length", "steps", "block"), GRID)
def test_without_pruning_the_schedule_is_the_published_one(length, steps, block):
    assert transfer_schedule(length, length, steps, block) == llada_transfer_schedule(length, steps, block)


def test_the_published_schedule_of_an_uneven_block_gives_the_remainder_to_the_first_calls():
    # 8 tokens in 6 calls: LLaDA's get_num_transfer_tokens gives the remainder to the first calls.
    assert llada_transfer_schedule(16, 12, 8) == [2, 2, 1, 1, 1, 1] * 2


def test_a_cutoff_inside_each_block_finishes_every_block_in_one_call():
    schedule = unmask_schedule((8, 8), 16, 16, 8, Cutoff(0.25, "block"))
    assert schedule.num_transfer_tokens == (1, 1, 1, 1, 1, 1, 2) * 2
    assert schedule.argmax == (False,) * 6 + (True,) + (False,) * 6 + (True,)


def test_at_0_05_a_cutoff_inside_blocks_of_32_saves_nothing():
    # 1.6 of 32 tokens are less than the two tokens that one call unmasks anyway.
    assert unmask_schedule((32,) * 8, 256, 128, 32, Cutoff(0.05, "block")).nfe >= 128


def test_a_call_continues_in_the_next_block_when_a_block_has_too_few_masked_tokens():
    schedule = unmask_schedule((1, 4), 8, 4, 4, Cutoff(0.0, "global"))
    assert schedule.num_transfer_tokens == (2, 2, 1)
    assert schedule.num_candidates == (1 + 4, 3, 1)


def test_fractions_are_rounded_as_decimal_numbers():
    assert floor_fraction(0.29, 100) == 29
    assert floor_fraction(0.05, 256) == 12
    assert [num_anchors(g, 256) for g in (0.05, 0.1)] == [13, 26]
    assert num_anchors(0.125, 20) == 3  # 2.5: halves upwards
    assert [num_anchors(0.05, n, "eligible") for n in (0, 1, 20, 21, 256)] == [0, 1, 1, 2, 13]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((256, 128, 33), "sampler.block_length is 33; it must divide sampler.gen_length, which is 256; try 32"),
        ((256, 100, 32), "multiple of 8 and at most sampler.gen_length = 256; try 96"),
        ((16, 32, 16), "at most sampler.gen_length = 16; try 16"),
        ((0, 1, 1), "all must be 1 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_a_remedy(sizes, message):
    with pytest.raises(RecipeError) as error:
        check_sizes(*sizes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fixed", "calls"),
    [
        ((0,) * 8, 123),
        ((2, 1, 2, 1, 2, 1, 2, 2), 122),
        ((2, 2, 2, 2, 2, 1, 1, 1), 123),
        ((0, 0, 0, 0, 0, 0, 0, 13), 117),
    ],
)
def test_fixed_blocks_spend_16_passes_each_whatever_their_anchors(fixed, calls):
    """Seven blocks take 112 passes. The last one must fill 243 - 224 positions, of which its anchors are some.

    With 2 anchors there, 17 of its 30 masks: 8 passes of two, one of one, and the finish. With none, 19 of 32: 9 passes
    of two, one of one, the finish. With 1, 18 of 31: 9 passes of two, one that unmasks none, and the finish. With all
    13, 6 of 19: 3 passes of two, one that unmasks none, and the finish.
    """
    masks_left = tuple(32 - count for count in fixed)
    schedule = unmask_schedule(masks_left, 256, 128, 32, Cutoff(0.05, rounding="ceil"), "fixed")
    assert schedule.nfe == calls
    assert sum(schedule.num_transfer_tokens) == 256 - sum(fixed)
    assert schedule.num_transfer_tokens[-1] == 13  # 256 - int(0.95 x 256)
    assert schedule.finishes == (False,) * (calls - 1) + (True,)


def test_without_pruning_fixed_blocks_are_lladas():
    assert list(unmask_schedule((8, 8), 16, 12, 8, blocks="fixed").num_transfer_tokens) == [2, 2, 1, 1, 1, 1] * 2
