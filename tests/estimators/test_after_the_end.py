"""What each estimator does with the filler after the first end-of-text token, as docs/papers.md says."""

import pytest
import torch

from stipule.estimators.autoregressive import Autoregressive
from stipule.estimators.coupled import Coupled
from stipule.estimators.elbo import Elbo
from stipule.estimators.one_step import OneStep
from stipule.estimators.spg import Spg
from stipule.estimators.trajectory import Trajectory
from stipule.estimators.unigrpo import UniGrpo
from tests.toys import response

LENGTH, LAST, ROWS = 12, 5, 40  # the token at index LAST is the first end-of-text token

MASKED, VISIBLE = True, False
ESTIMATORS = [
    (OneStep(), MASKED),
    (Spg(block_length=4), MASKED),
    (Spg(masks="random"), VISIBLE),
    (Spg(masks="random", match_published_code=True), MASKED),
    (Coupled(), VISIBLE),
    (Elbo(), VISIBLE),
    (Elbo(num_samples=2, masks="exact", timestep_sampling="antithetic", subsets="cyclic"), VISIBLE),
    (Elbo(masks="rao_blackwell"), VISIBLE),
    (UniGrpo(), VISIBLE),
    (Autoregressive(), MASKED),
]


def rollouts_that_end_early():
    completion = [index <= LAST for index in range(LENGTH)]
    rollouts = response([[1] * LENGTH] * ROWS, completion_mask=[completion] * ROWS)
    rollouts.unmask_step[:] = torch.arange(LENGTH)
    return rollouts


@pytest.mark.parametrize(("estimator", "filler"), ESTIMATORS, ids=str)
def test_filler_has_no_loss_and_is_masked_or_visible(estimator, filler):
    for masks in estimator.sample_masks(rollouts_that_end_early(), 2, torch.Generator().manual_seed(0)):
        computed = masks.needs_forward
        assert bool((masks.masked[computed][:, LAST + 1 :] == filler).all())
        assert not bool(masks.loss_weights[:, :, LAST + 1 :].any()) and not bool(
            masks.normalizer_mask[:, LAST + 1 :].any()
        )
        assert bool(masks.loss_weights[:, :, LAST].any())


def test_filler_of_a_trajectory_is_masked_until_its_step_and_the_first_end_of_text_token_has_a_loss():
    rollouts = rollouts_that_end_early()
    rollouts.unmask_step[:] = torch.tensor([0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11])
    masks = Trajectory().sample_masks(rollouts, 1, torch.Generator())[0]
    for step in range(LENGTH):
        assert torch.equal(masks.masked[step], rollouts.unmask_step >= step)
        target = (rollouts.unmask_step == step) & rollouts.completion_mask
        assert torch.equal(masks.loss_weights[step], target.float())
    assert masks.needs_forward[:, 0].tolist() == [step % 2 == 0 for step in range(LENGTH)]
