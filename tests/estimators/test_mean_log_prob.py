"""The authors' score against its mean over all masks, computed from the logits of every masked copy."""

import itertools
import math

import pytest
import torch

from stipule.estimators.mean_log_prob import MeanLogProb
from stipule.estimators.token_logps import estimate_logps
from tests.toys import response

LENGTH = 5
COMPLETION = [7, 9, 5, 8, 6]


def repeated(rows, sampled_mask=None, completion_mask=None):
    return response(
        [COMPLETION] * rows,
        sampled_mask=None if sampled_mask is None else [sampled_mask] * rows,
        completion_mask=None if completion_mask is None else [completion_mask] * rows,
    )


def logps_of_masked_copy(policy, masked):
    """log p(x0_i | x) for every position i of the response with these positions masked."""
    tokens = [policy.mask_id if i in masked else token for i, token in enumerate(COMPLETION)]
    prompt = response([COMPLETION]).prompt_ids
    logits = policy.logits(
        torch.cat([prompt, torch.tensor([tokens])], 1), None, torch.tensor([[False] + [True] * LENGTH])
    )
    return logits.double().log_softmax(1)[torch.arange(LENGTH), torch.tensor(COMPLETION)]


def target(policy, sampled_mask, completion_mask):
    """The mean over the number of masked tokens and the subsets of that size, as the authors draw them."""
    text = [i for i in range(LENGTH) if completion_mask[i]]
    after_end = [i for i in range(LENGTH) if not completion_mask[i]]
    total = torch.zeros(LENGTH, dtype=torch.float64)
    for size in range(1, len(text) + 1):
        for members in itertools.combinations(text, size):
            masked = [i for i in [*members, *after_end] if sampled_mask[i]]
            total += logps_of_masked_copy(policy, masked) / (len(text) * math.comb(len(text), size))
    return total


@pytest.mark.parametrize(
    ("sampled_mask", "completion_mask"),
    [
        ([True] * 5, [True] * 5),
        ([True, False, True, True, False], [True] * 5),
        ([True] * 5, [True, True, True, False, False]),
        ([True, False, True, False, True], [True, True, True, False, False]),
    ],
    ids=["all", "anchors", "end", "anchors and end"],
)
def test_the_mean_over_mask_samples_is_the_enumerated_target(policy, sampled_mask, completion_mask):
    rows = 6000
    rollouts = repeated(rows, sampled_mask, completion_mask)
    estimator = MeanLogProb()
    (masks,) = estimator.sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        score = estimate_logps(policy, rollouts, masks, estimator, torch.zeros(rows)).double()
        wanted = target(policy, sampled_mask, completion_mask) * torch.tensor(completion_mask)
    error = score.std(0) / rows**0.5
    assert bool(((score.mean(0) - wanted).abs() <= 4.5 * error + 1e-5).all()), (score.mean(0), wanted, error)


def test_anchors_are_visible_and_count_or_do_not_count():
    rollouts = repeated(50, [True, False, True, True, False], [True, True, True, True, False])
    (inside,) = MeanLogProb().sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    (outside,) = MeanLogProb(anchors="outside").sample_masks(rollouts, 1, torch.Generator().manual_seed(0))
    assert torch.equal(inside.masked, outside.masked)
    assert not bool(inside.masked[..., [1, 4]].any())  # anchors, also the one after the end of the text
    assert inside.normalizer_mask[0].tolist() == [True, True, True, True, False]
    assert outside.normalizer_mask[0].tolist() == [True, False, True, True, False]
    assert torch.equal(inside.loss_weights[:, 0] * 3, torch.tensor([[1.0, 1, 1, 1, 0]] * 3))
    assert torch.equal(outside.loss_weights[:, 0] * 3, torch.tensor([[1.0, 0, 1, 1, 0]] * 3))
