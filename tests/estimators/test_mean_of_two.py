"""The example estimator: its estimates have the mean of the one-step estimate and the enumerated ELBO."""

import torch

from examples.custom_estimator import MeanOfOneStepAndElbo
from tests.estimators.enumeration import LENGTH, agree, copies, elbo_of_tokens, estimates, mean, vector

SAMPLED = [True, False, True, True, True]


def test_the_mean_estimator_has_the_average_of_both_enumerated_targets():
    for num_samples in (1, 3):
        estimator = MeanOfOneStepAndElbo(num_samples=num_samples)
        target = (vector(range(LENGTH)) + elbo_of_tokens(list(range(LENGTH)))) / 2
        agree(*mean(estimator, copies(20000)), target)
    chosen = [i for i in range(LENGTH) if SAMPLED[i]]  # an anchor has no term, and is never masked
    target = (vector(chosen) + elbo_of_tokens(chosen)) / 2
    agree(*mean(estimator, copies(20000, sampled_mask=SAMPLED)), target)


def test_its_first_mask_sample_is_the_fully_masked_response_with_half_the_weight():
    masks = MeanOfOneStepAndElbo(num_samples=2).sample_masks(copies(3), 2, torch.Generator().manual_seed(0))
    assert len(masks) == 2 and all(m.masked.shape == (3, 3, LENGTH) and bool(m.masked[0].all()) for m in masks)
    assert masks[0].loss_weights[0].unique().tolist() == [0.5]
    assert not torch.equal(masks[0].masked[1:], masks[1].masked[1:])  # new ones for each inner update
    assert estimates(MeanOfOneStepAndElbo(), copies(1)).shape == (1, LENGTH)
