"""Which tokens SPG masks: how often at each position, in our form and in the published one."""

import pytest
import torch

from stipule.estimators.spg import Spg
from tests.toys import response

ROWS, LENGTH, WITHHELD = 4000, 64, 0.15


def masked_share(estimator, num_tokens, rows=ROWS):
    """How often each position is masked, in responses of which the first `num_tokens` tokens count."""
    completion = [index < num_tokens for index in range(LENGTH)]
    rollouts = response([[1] * LENGTH] * rows, completion_mask=[completion] * rows)
    (masks,) = estimator.sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    assert bool((masks.loss_weights > 0).any(2).all()) and not bool((masks.loss_weights != 0)[~masks.masked].any())
    return masks.masked.float().mean((0, 1)).double()


def published_block_share(num_tokens, block_length):
    """The block: a permutation of all blocks modulo the number of those with text. In it k ~ U{1..m} tokens."""
    blocks, with_text = LENGTH // block_length, -(-num_tokens // block_length)
    fraction = torch.zeros(LENGTH, dtype=torch.float64)
    for number in range(blocks):
        first = number % with_text * block_length
        m = min(block_length, num_tokens - first)
        fraction[:first] += WITHHELD / blocks
        fraction[first : first + m] += (m + 1) / (2 * m) / blocks
        fraction[first + m :] += 1 / blocks
    fraction[num_tokens:] = 1
    return fraction


def our_block_share(num_tokens, block_length):
    """All blocks with text are equally likely, and every visible token of the response may be withheld."""
    with_text = -(-num_tokens // block_length)
    fraction = torch.zeros(LENGTH, dtype=torch.float64)
    for number in range(with_text):
        first = number * block_length
        m = min(block_length, num_tokens - first)
        chosen = (m + 1) / (2 * m)
        fraction[:first] += WITHHELD / with_text
        fraction[first : first + m] += (chosen + (1 - chosen) * WITHHELD) / with_text
        fraction[first + m :] += 1 / with_text
    fraction[num_tokens:] = 1
    return fraction


def near(result, expected):
    """Within 4.5 standard errors of 2 x ROWS draws at every position."""
    assert float((result - expected).abs().max()) < 4.5 * 0.5 / (2 * ROWS) ** 0.5


@pytest.mark.parametrize("num_tokens", [64, 37, 8, 1])
@pytest.mark.parametrize("block_length", [8, 16])
def test_block_masks_hide_each_position_as_often_as_they_should(num_tokens, block_length):
    published = Spg(masks="block", block_length=block_length, match_published_code=True)
    near(masked_share(published, num_tokens), published_block_share(num_tokens, block_length))
    near(
        masked_share(Spg(masks="block", block_length=block_length), num_tokens),
        our_block_share(num_tokens, block_length),
    )


@pytest.mark.parametrize("num_tokens", [64, 37, 8, 1])
def test_random_masks_hide_each_position_as_often_as_they_should(num_tokens):
    chosen, inside = (num_tokens + 1) / (2 * num_tokens), torch.arange(LENGTH) < num_tokens
    published = torch.where(inside, chosen, 1.0).double()
    near(masked_share(Spg(masks="random", match_published_code=True), num_tokens), published)
    ours = torch.where(inside, chosen + (1 - chosen) * WITHHELD, 0.0).double()
    near(masked_share(Spg(masks="random"), num_tokens), ours)


def test_the_shares_of_masked_tokens_are_those_of_the_docstring():
    for masks, published, ours in (("block", 0.564, 0.582), ("random", 0.508, 0.582)):
        for match_published_code, expected in ((True, published), (False, ours)):
            estimator = Spg(masks=masks, block_length=16, match_published_code=match_published_code)
            assert float(masked_share(estimator, LENGTH).mean()) == pytest.approx(expected, abs=0.006)


def test_the_published_number_of_masked_tokens_is_uniform_and_their_set_too():
    """Random masks of 3 tokens: each count in a third of the samples, each set of a count equally often."""
    (masks,) = Spg(masks="random", num_samples=1, match_published_code=True).sample_masks(
        response([[1, 1, 1]] * 30_000), 1, torch.Generator().manual_seed(0)
    )
    codes = (masks.masked[0].long() << torch.arange(3)).sum(1)
    frequency = torch.bincount(codes, minlength=8) / len(codes)
    assert frequency.tolist() == pytest.approx([0, *[1 / 9] * 6, 1 / 3], abs=0.008)
