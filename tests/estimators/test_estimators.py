"""Each biased estimator against its target, and each exact estimator against the chain rule."""

import itertools
import math

import pytest
import torch

from stipule.errors import RecipeError
from stipule.estimators.autoregressive import Autoregressive
from stipule.estimators.coupled import Coupled
from stipule.estimators.one_step import OneStep
from stipule.estimators.spg import Spg
from stipule.estimators.token_logps import estimate_logps
from stipule.estimators.trajectory import Trajectory
from stipule.estimators.unigrpo import UniGrpo
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.estimators.enumeration import (
    COMPLETION,
    LENGTH,
    TOY,
    agree,
    copies,
    elbo_of_tokens,
    estimates,
    mean,
    over_t,
    probability,
    subsets_of,
    vector,
)
from tests.toys import anchored, prompts

EVERY = list(range(LENGTH))
SAMPLED_MASK = [True, False, True, True, False]
GROUND = torch.float64


def test_one_step_is_the_fully_masked_likelihood():
    assert torch.allclose(estimates(OneStep(), copies(1))[0], vector(EVERY), atol=1e-6)
    masked = [0, 2, 3]
    assert torch.allclose(estimates(OneStep(), copies(1, sampled_mask=SAMPLED_MASK))[0], vector(masked), atol=1e-6)


def test_one_step_masks_the_tokens_after_the_end_but_gives_them_no_loss():
    ended = copies(1, completion_mask=[True, True, True, False, False])
    result = estimates(OneStep(), ended)[0]
    assert torch.allclose(result[:3], vector(EVERY)[:3], atol=1e-6)
    assert result[3] == result[4] == 0


def test_one_step_masks_new_prompt_tokens_in_every_update_and_no_padding(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=12, block_length=6)
    rollouts = sampler(policy, prompts(policy, 40), sampler.sample_noise(40, torch.Generator().manual_seed(0)))
    first, second = OneStep(p_mask_prompt=0.4).sample_masks(rollouts, 2, torch.Generator().manual_seed(0))
    assert not torch.equal(first.prompt_masked, second.prompt_masked)
    assert not bool((first.prompt_masked[0] & ~rollouts.prompt_mask).any())
    fraction = float(first.prompt_masked.sum() / rollouts.prompt_mask.sum())
    assert fraction == pytest.approx(0.4, abs=0.08)
    advantage = torch.zeros(40)
    assert not torch.allclose(
        estimate_logps(policy, rollouts, first, OneStep(), advantage),
        estimate_logps(policy, rollouts, second, OneStep(), advantage),
    )


@pytest.mark.parametrize("update", [0, 1, 2])
def test_unigrpo_gives_every_mask_ratio_the_same_weight(update):
    low = 0.1 + 0.9 * update / 2  # update j of 3 draws t from U(t_min + (1 - t_min) j/2, 1)
    target = torch.zeros(LENGTH, dtype=GROUND)
    for members in subsets_of(EVERY):
        target += vector(members) * over_t(low, 1.0, lambda t, m=members: probability(m, EVERY, t))
    result, error = mean(UniGrpo(t_min=0.1), copies(60_000), updates=3, update=update)
    agree(result, error, target)


def test_unigrpo_averages_over_the_masked_tokens():
    (mask_samples,) = UniGrpo().sample_masks(copies(50), 1, torch.Generator().manual_seed(0))
    assert torch.equal(mask_samples.normalizer_mask, mask_samples.masked[0])


@pytest.mark.parametrize(("match_published_code", "scale"), [(False, 1 / 3), (True, 1 / 2)])
def test_coupled_is_the_mean_of_three_mask_samples_and_three_halves_of_it_as_published(match_published_code, scale):
    target = vector(EVERY).clone()
    for members in subsets_of(EVERY):
        # The complement's t is 1 - t, drawn from the same interval: both masks have this mean.
        target += 2 * vector(members) * over_t(0.2, 0.8, lambda t, m=members: probability(m, EVERY, t) / t)
    result, error = mean(Coupled(t_min=0.2, match_published_code=match_published_code), copies(60_000))
    agree(result, error, target * scale)


def test_coupled_masks_every_token_in_exactly_one_of_two_complements():
    (mask_samples,) = Coupled().sample_masks(copies(50, sampled_mask=SAMPLED_MASK), 1, torch.Generator().manual_seed(0))
    assert torch.equal(mask_samples.masked[1:].sum(0), torch.tensor(SAMPLED_MASK).long().expand(50, LENGTH))


def test_a_trajectory_in_any_order_obeys_the_chain_rule():
    for order in itertools.islice(itertools.permutations(range(LENGTH)), 0, None, 13):
        result = estimates(Trajectory(), copies(1, unmask_step=order))
        assert float(result.sum()) == pytest.approx(TOY.log_p(COMPLETION), abs=1e-5)


def test_a_trajectory_evaluates_tokens_at_the_step_that_unmasked_them():
    unmask_step = [4, 0, 4, 2, 0]  # steps 0, 2 and 4 unmasked positions {1, 4}, {3} and {0, 2}
    exact = estimates(Trajectory(), copies(1, unmask_step=unmask_step))[0]
    first, second, third = vector(EVERY).tolist(), vector([0, 2, 3]).tolist(), vector([0, 2]).tolist()
    assert exact.tolist() == pytest.approx([third[0], first[1], third[2], second[3], first[4]], abs=1e-6)
    shrunk = estimates(Trajectory(shrink=2), copies(1, unmask_step=unmask_step))[0]
    assert shrunk.tolist() == pytest.approx([third[0], first[1], third[2], first[3], first[4]], abs=1e-6)


def test_the_trajectory_of_a_rollout_has_the_probabilities_it_was_sampled_with(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=6, block_length=6, temperature=1.0)
    anchors = anchored(policy, 3, 12, 3)
    rollouts = sampler(policy, prompts(policy), sampler.sample_noise(3, torch.Generator().manual_seed(0)), anchors)
    estimator = Trajectory()
    mask_samples = estimator.sample_masks(rollouts, 2, torch.Generator())
    assert mask_samples[0] is mask_samples[1]
    with torch.no_grad():
        result = estimate_logps(policy, rollouts, mask_samples[0], estimator, torch.zeros(3))
        # The sampler never samples the mask token: it renormalises. The estimator does not.
        mask = sum(
            _mask_probability(policy, rollouts, v) * (w != 0)
            for v, w in zip(mask_samples[0].masked, mask_samples[0].loss_weights, strict=True)
        )
    expected = rollouts.confidence.log() + torch.log1p(-mask)
    assert torch.allclose(result[rollouts.loss_mask], expected[rollouts.loss_mask], atol=1e-4)


def _mask_probability(policy, rollouts, masked):
    """Probability of the mask token at every position under one mask."""
    tokens = torch.cat([rollouts.prompt_ids, rollouts.completion_ids.masked_fill(masked, policy.mask_id)], 1)
    attention_mask = torch.cat([rollouts.prompt_mask, torch.ones_like(masked)], 1)
    position_mask = torch.cat([torch.zeros_like(rollouts.prompt_mask), torch.ones_like(masked)], 1)
    return policy.logits(tokens, attention_mask, position_mask).softmax(1)[:, policy.mask_id].view(masked.shape)


def test_a_trajectory_needs_the_step_of_every_token():
    with pytest.raises(RecipeError, match="no step in which their tokens were unmasked"):
        Trajectory().sample_masks(copies(1, unmask_step=[-1] * LENGTH), 1, torch.Generator())


def test_autoregressive_obeys_the_chain_rule_with_and_without_anchors():
    assert float(estimates(Autoregressive(), copies(1)).sum()) == pytest.approx(TOY.log_p(COMPLETION), abs=1e-5)
    result = estimates(Autoregressive(), copies(1, sampled_mask=SAMPLED_MASK))[0]
    assert float(result.sum()) == pytest.approx(TOY.log_p(COMPLETION, tuple(not f for f in SAMPLED_MASK)), abs=1e-5)
    assert result[1] == result[4] == 0


def test_autoregressive_is_the_trajectory_of_a_sampler_that_goes_left_to_right(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=12, block_length=1, temperature=1.0)
    anchors = anchored(policy, 3, 12, 3)
    rollouts = sampler(policy, prompts(policy), sampler.sample_noise(3, torch.Generator().manual_seed(0)), anchors)
    result = []
    for estimator in (Autoregressive(), Trajectory()):
        (mask_samples,) = estimator.sample_masks(rollouts, 1, torch.Generator())
        with torch.no_grad():
            result.append(estimate_logps(policy, rollouts, mask_samples, estimator, torch.zeros(3)))
    assert torch.allclose(result[0], result[1], atol=1e-4)


def test_spg_uses_the_elbo_for_good_responses():
    result, error = mean(Spg(masks="random", p_mask_prompt=0.0), copies(60_000), advantage=1.0)
    agree(result, error, elbo_of_tokens(EVERY))


def test_spg_restricted_to_a_block_is_the_semi_autoregressive_elbo():
    # Blocks {0, 1}, {2, 3}, {4}: block b given the blocks before it, all later blocks masked.
    target = torch.zeros(LENGTH, dtype=GROUND)
    for block in ([0, 1], [2, 3], [4]):
        later = [i for i in EVERY if i > block[-1]]
        for members in subsets_of(block):
            k, n = len(members), len(block)
            logps = vector([*members, *later]).clone()
            logps[later] = 0
            target += logps * (n / k) / (n * math.comb(n, k))
    assert float(target.sum()) == pytest.approx(TOY.log_p(COMPLETION), abs=1e-6)  # consistent: no looser than the ELBO
    result, error = mean(Spg(masks="block", block_length=2, p_mask_prompt=0.0), copies(120_000), advantage=1.0)
    agree(result, error, target)


def test_spg_as_published_counts_the_masked_tokens_of_later_blocks():
    # One block of {0..3} and {4}: the published choice is a permutation of 2 ids modulo 2 completion_mask blocks.
    target = torch.zeros(LENGTH, dtype=GROUND)
    for block, later in (([0, 1, 2, 3], [4]), ([4], [])):
        for members in subsets_of(block):
            k, n = len(members), len(block)
            masked = [*members, *later]
            target += 0.5 * vector(masked) * LENGTH / len(masked) / (n * math.comb(n, k))
    result, error = mean(
        Spg(num_samples=1, masks="block", block_length=4, p_mask_prompt=0.0, match_published_code=True),
        copies(120_000),
        advantage=1.0,
    )
    agree(result, error, target)


def test_the_published_block_sampling_is_not_uniform_and_ours_is():
    short = copies(
        30_000, completion_mask=[True, True, True, False, False]
    )  # 3 blocks of 2, of which 2 completion_mask
    fractions = []
    for match_published_code in (True, False):
        estimator = Spg(
            num_samples=1, masks="block", block_length=2, p_mask_prompt=0.0, match_published_code=match_published_code
        )
        (mask_samples,) = estimator.sample_masks(short, 1, torch.Generator().manual_seed(0))
        first = mask_samples.masked[0, :, :2].any(1)
        fractions.append(float(first.float().mean()))
    assert fractions == pytest.approx([2 / 3, 1 / 2], abs=0.01)


@pytest.mark.parametrize(("beta", "mixture"), [(1.0, 1.0), (1.5, 1.0), (1.5, 0.5)])
def test_spg_uses_the_enumerated_mixture_for_bad_responses(beta, mixture):
    """Two mask samples: the mean of the logarithm over all pairs of masks, not the logarithm of a mean."""
    masks = [(m, 1 / (LENGTH * math.comb(LENGTH, len(m)))) for m in subsets_of(EVERY)]
    target = torch.zeros(LENGTH, dtype=GROUND)
    for (one, p), (other, q) in itertools.product(masks, masks):
        total = torch.zeros(LENGTH, dtype=GROUND)
        for members in (one, other):
            here = vector(members)
            total += torch.where(here != 0, here.mul(beta).exp() * LENGTH / len(members) / 2, 0.0)
        positive = total > 0
        target += (
            p * q * torch.where(positive, total.where(positive, 1.0).log() / beta, 0.0) * LENGTH / int(positive.sum())
        )
    target = mixture * target + (1 - mixture) * elbo_of_tokens(EVERY)
    estimator = Spg(num_samples=2, masks="random", eubo_beta=beta, mixture=mixture, p_mask_prompt=0.0)
    result, error = mean(estimator, copies(120_000), advantage=-1.0)
    agree(result, error, target)


def test_with_many_samples_the_bounds_of_spg_enclose_log_p():
    bounds = {}
    for sign in (1.0, -1.0):
        logps = estimates(
            Spg(num_samples=2000, masks="random", mixture=1.0, p_mask_prompt=0.0), copies(20), advantage=sign
        )
        bounds[sign] = float(logps.sum(1).mean())
    assert bounds[1.0] == pytest.approx(TOY.log_p(COMPLETION), abs=0.1)
    assert bounds[-1.0] > TOY.log_p(COMPLETION) + 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneStep(p_mask_prompt=1.0), "probability that a prompt token is masked"),
        (lambda: UniGrpo(t_min=0.0), "estimator.t_min is 0.0"),
        (lambda: Coupled(t_min=0.6), r"must lie in \(0, 0.5\]"),
        (lambda: Spg(eubo_beta=0.5), "no upper bound"),
        (lambda: Spg(num_samples=0), "must be 1 or more"),
        (lambda: Spg(mixture=2.0), "they are fractions"),
        (lambda: Trajectory(shrink=0), "number of steps"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()
