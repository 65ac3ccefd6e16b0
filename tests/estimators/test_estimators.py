"""Each biased estimator against its own target, and each exact one against the chain rule."""

import itertools
import math

import pytest
import torch

from stipule.errors import RecipeError
from stipule.estimators.autoregressive import Autoregressive
from stipule.estimators.coupled import Coupled
from stipule.estimators.one_step import OneStep
from stipule.estimators.token_logps import estimate_logps
from stipule.estimators.spg import Spg
from stipule.estimators.trajectory import Trajectory
from stipule.estimators.unigrpo import UniGrpo
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from tests.estimators.enumeration import (
    LENGTH,
    ROW,
    TOY,
    agree,
    chance,
    copies,
    draws,
    elbo_of_tokens,
    mean,
    over_t,
    subsets_of,
    vector,
)
from tests.toys import anchored, prompts

EVERY = list(range(LENGTH))
FREE = [True, False, True, True, False]
GROUND = torch.float64


def test_one_step_is_the_fully_masked_likelihood():
    assert torch.allclose(draws(OneStep(), copies(1))[0], vector(EVERY), atol=1e-6)
    masked = [0, 2, 3]
    assert torch.allclose(draws(OneStep(), copies(1, free=FREE))[0], vector(masked), atol=1e-6)


def test_one_step_hides_what_follows_the_end_but_does_not_score_it():
    ended = copies(1, live=[True, True, True, False, False])
    found = draws(OneStep(), ended)[0]
    assert torch.allclose(found[:3], vector(EVERY)[:3], atol=1e-6)
    assert found[3] == found[4] == 0


def test_one_step_hides_its_share_of_real_prompt_tokens_anew_in_every_update(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=12, block_length=6)
    rolled = sampler(policy, prompts(policy, 40), sampler.sample_noise(40, torch.Generator().manual_seed(0)))
    first, second = OneStep(p_mask_prompt=0.4).sample_masks(rolled, 2, torch.Generator().manual_seed(0))
    assert not torch.equal(first.prompt_masked, second.prompt_masked)
    assert not bool((first.prompt_masked[0] & ~rolled.prompt_mask).any())
    share = float(first.prompt_masked.sum() / rolled.prompt_mask.sum())
    assert share == pytest.approx(0.4, abs=0.08)
    advantage = torch.zeros(40)
    assert not torch.allclose(
        estimate_logps(policy, rolled, first, OneStep(), advantage),
        estimate_logps(policy, rolled, second, OneStep(), advantage),
    )


@pytest.mark.parametrize("update", [0, 1, 2])
def test_unigrpo_weighs_all_shares_of_masks_alike(update):
    low = 0.1 + 0.9 * update / 2  # update j of 3 draws t from U(t_min + (1 - t_min) j/2, 1)
    target = torch.zeros(LENGTH, dtype=GROUND)
    for members in subsets_of(EVERY):
        target += vector(members) * over_t(low, 1.0, lambda t, m=members: chance(m, EVERY, t))
    found, error = mean(UniGrpo(t_min=0.1), copies(60_000), updates=3, update=update)
    agree(found, error, target)


def test_unigrpo_averages_over_the_hidden_tokens():
    (views,) = UniGrpo().sample_masks(copies(50), 1, torch.Generator().manual_seed(0))
    assert torch.equal(views.normalizer_mask, views.masked[0])


@pytest.mark.parametrize(("compat", "scale"), [(False, 1 / 3), (True, 1 / 2)])
def test_coupled_is_the_mean_of_its_three_views_and_three_halves_of_it_as_published(compat, scale):
    target = vector(EVERY).clone()
    for members in subsets_of(EVERY):
        # The complement's t is 1 - t, drawn from the same interval: both masks have this mean.
        target += 2 * vector(members) * over_t(0.2, 0.8, lambda t, m=members: chance(m, EVERY, t) / t)
    found, error = mean(Coupled(t_min=0.2, match_published_code=compat), copies(60_000))
    agree(found, error, target * scale)


def test_coupled_sees_every_token_outside_the_full_view_exactly_once():
    (views,) = Coupled().sample_masks(copies(50, free=FREE), 1, torch.Generator().manual_seed(0))
    assert torch.equal(views.masked[1:].sum(0), torch.tensor(FREE).long().expand(50, LENGTH))


def test_a_trajectory_in_any_order_obeys_the_chain_rule():
    for order in itertools.islice(itertools.permutations(range(LENGTH)), 0, None, 13):
        found = draws(Trajectory(), copies(1, revealed=order))
        assert float(found.sum()) == pytest.approx(TOY.log_p(ROW), abs=1e-5)


def test_a_trajectory_scores_tokens_in_the_state_in_which_they_were_committed():
    revealed = [4, 0, 4, 2, 0]  # steps 0, 2 and 4 committed positions {1, 4}, {3} and {0, 2}
    exact = draws(Trajectory(), copies(1, revealed=revealed))[0]
    first, second, third = vector(EVERY).tolist(), vector([0, 2, 3]).tolist(), vector([0, 2]).tolist()
    assert exact.tolist() == pytest.approx([third[0], first[1], third[2], second[3], first[4]], abs=1e-6)
    shrunk = draws(Trajectory(shrink=2), copies(1, revealed=revealed))[0]
    assert shrunk.tolist() == pytest.approx([third[0], first[1], third[2], first[3], first[4]], abs=1e-6)


def test_the_trajectory_of_a_rollout_has_the_probabilities_it_was_sampled_with(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=6, block_length=6, temperature=1.0)
    placed = anchored(policy, 3, 12, 3)
    rolled = sampler(policy, prompts(policy), sampler.sample_noise(3, torch.Generator().manual_seed(0)), placed)
    estimator = Trajectory()
    views = estimator.sample_masks(rolled, 2, torch.Generator())
    assert views[0] is views[1]
    with torch.no_grad():
        found = estimate_logps(policy, rolled, views[0], estimator, torch.zeros(3))
        # The sampler never picks the mask: it renormalises what scoring leaves in.
        mask = sum(
            _mask_share(policy, rolled, v) * (w != 0)
            for v, w in zip(views[0].masked, views[0].loss_weights, strict=True)
        )
    expected = rolled.confidence.log() + torch.log1p(-mask)
    assert torch.allclose(found[rolled.loss_mask], expected[rolled.loss_mask], atol=1e-4)


def _mask_share(policy, rolled, hidden):
    """Probability of the mask token at every position of one view."""
    tokens = torch.cat([rolled.prompt, rolled.tokens.masked_fill(hidden, policy.mask_id)], 1)
    attend = torch.cat([rolled.prompt_mask, torch.ones_like(hidden)], 1)
    at = torch.cat([torch.zeros_like(rolled.prompt_mask), torch.ones_like(hidden)], 1)
    return policy.logits(tokens, attend, at).softmax(1)[:, policy.mask_id].view(hidden.shape)


def test_a_trajectory_needs_to_know_when_tokens_were_revealed():
    with pytest.raises(RecipeError, match="in which step"):
        Trajectory().sample_masks(copies(1, revealed=[-1] * LENGTH), 1, torch.Generator())


def test_autoregressive_obeys_the_chain_rule_with_and_without_anchors():
    assert float(draws(Autoregressive(), copies(1)).sum()) == pytest.approx(TOY.log_p(ROW), abs=1e-5)
    found = draws(Autoregressive(), copies(1, free=FREE))[0]
    assert float(found.sum()) == pytest.approx(TOY.log_p(ROW, tuple(not f for f in FREE)), abs=1e-5)
    assert found[1] == found[4] == 0


def test_autoregressive_is_the_trajectory_of_a_sampler_that_goes_left_to_right(policy):
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=12, block_length=1, temperature=1.0)
    placed = anchored(policy, 3, 12, 3)
    rolled = sampler(policy, prompts(policy), sampler.sample_noise(3, torch.Generator().manual_seed(0)), placed)
    found = []
    for estimator in (Autoregressive(), Trajectory()):
        (views,) = estimator.sample_masks(rolled, 1, torch.Generator())
        with torch.no_grad():
            found.append(estimate_logps(policy, rolled, views, estimator, torch.zeros(3)))
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_spg_scores_good_responses_by_the_elbo():
    found, error = mean(Spg(masks="random", p_mask_prompt=0.0), copies(60_000), advantage=1.0)
    agree(found, error, elbo_of_tokens(EVERY))


def test_spg_restricted_to_a_block_is_the_semi_autoregressive_elbo():
    # Blocks {0, 1}, {2, 3}, {4}: block b given the blocks before it, all later ones hidden.
    target = torch.zeros(LENGTH, dtype=GROUND)
    for block in ([0, 1], [2, 3], [4]):
        later = [i for i in EVERY if i > block[-1]]
        for members in subsets_of(block):
            k, n = len(members), len(block)
            part = vector([*members, *later]).clone()
            part[later] = 0
            target += part * (n / k) / (n * math.comb(n, k))
    assert float(target.sum()) == pytest.approx(TOY.log_p(ROW), abs=1e-6)  # consistent: no looser than the ELBO
    found, error = mean(Spg(masks="block", block_length=2, p_mask_prompt=0.0), copies(120_000), advantage=1.0)
    agree(found, error, target)


def test_spg_as_published_counts_what_it_hid_for_later_blocks():
    # One block of {0..3} and {4}: the published choice is a permutation of 2 ids modulo 2 live blocks.
    target = torch.zeros(LENGTH, dtype=GROUND)
    for block, later in (([0, 1, 2, 3], [4]), ([4], [])):
        for members in subsets_of(block):
            k, n = len(members), len(block)
            hidden = [*members, *later]
            target += 0.5 * vector(hidden) * LENGTH / len(hidden) / (n * math.comb(n, k))
    found, error = mean(
        Spg(num_samples=1, masks="block", block_length=4, p_mask_prompt=0.0, match_published_code=True),
        copies(120_000),
        advantage=1.0,
    )
    agree(found, error, target)


def test_the_published_choice_of_blocks_is_not_uniform_and_ours_is():
    short = copies(30_000, live=[True, True, True, False, False])  # 3 blocks of 2, of which 2 live
    shares = []
    for compat in (True, False):
        estimator = Spg(num_samples=1, masks="block", block_length=2, p_mask_prompt=0.0, match_published_code=compat)
        (views,) = estimator.sample_masks(short, 1, torch.Generator().manual_seed(0))
        first = views.masked[0, :, :2].any(1)
        shares.append(float(first.float().mean()))
    assert shares == pytest.approx([2 / 3, 1 / 2], abs=0.01)


@pytest.mark.parametrize(("beta", "mixture"), [(1.0, 1.0), (1.5, 1.0), (1.5, 0.5)])
def test_spg_scores_bad_responses_by_the_enumerated_mixture(beta, mixture):
    """Two draws: the mean of the logarithm over all pairs of masks, not the logarithm of a mean."""
    masks = [(m, 1 / (LENGTH * math.comb(LENGTH, len(m)))) for m in subsets_of(EVERY)]
    target = torch.zeros(LENGTH, dtype=GROUND)
    for (one, p), (other, q) in itertools.product(masks, masks):
        total = torch.zeros(LENGTH, dtype=GROUND)
        for members in (one, other):
            here = vector(members)
            total += torch.where(here != 0, here.mul(beta).exp() * LENGTH / len(members) / 2, 0.0)
        seen = total > 0
        target += p * q * torch.where(seen, total.where(seen, 1.0).log() / beta, 0.0) * LENGTH / int(seen.sum())
    target = mixture * target + (1 - mixture) * elbo_of_tokens(EVERY)
    estimator = Spg(num_samples=2, masks="random", eubo_beta=beta, mixture=mixture, p_mask_prompt=0.0)
    found, error = mean(estimator, copies(120_000), advantage=-1.0)
    agree(found, error, target)


def test_with_many_draws_spg_is_a_sandwich():
    bounds = {}
    for sign in (1.0, -1.0):
        scores = draws(
            Spg(num_samples=2000, masks="random", mixture=1.0, p_mask_prompt=0.0), copies(20), advantage=sign
        )
        bounds[sign] = float(scores.sum(1).mean())
    assert bounds[1.0] == pytest.approx(TOY.log_p(ROW), abs=0.1)
    assert bounds[-1.0] > TOY.log_p(ROW) + 0.1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OneStep(p_mask_prompt=1.0), "share of hidden prompt tokens"),
        (lambda: UniGrpo(t_min=0.0), "estimator.t_min is 0.0"),
        (lambda: Coupled(t_min=0.6), r"must lie in \(0, 0.5\]"),
        (lambda: Spg(eubo_beta=0.5), "no upper bound"),
        (lambda: Spg(num_samples=0), "must be 1 or more"),
        (lambda: Spg(mixture=2.0), "they are shares"),
        (lambda: Trajectory(shrink=0), "number of steps"),
    ],
)
def test_values_out_of_range_are_refused(make, words):
    with pytest.raises(RecipeError, match=words):
        make()
