"""Every form of the ELBO has the enumerated ELBO of each token as its mean."""

import pytest
import torch

from stipule.errors import RecipeError
from stipule.estimators.elbo import Elbo
from stipule.estimators.timestep_sampling import uniform_counts, sample_uniforms
from stipule.estimators.importance_sampling import (
    DEFENSIVE_FRACTION,
    NUM_KNOTS,
    LossHistory,
    importance_sampled_counts,
    loss_by_mask_ratio,
)
from tests.estimators.enumeration import LENGTH, ROW, TOY, agree, copies, elbo_of_tokens, mean
from tests.toys import response

FORMS = [
    Elbo(num_samples=samples, masks=masks, timestep_sampling=levels, subsets=subsets, importance_sampling=profile)
    for masks in ("exact", "rao_blackwell")
    for levels in ("independent", "systematic", "jittered", "antithetic")
    for subsets in ("independent", "circular")
    for profile in ((None, (0.3, 1.3, 0.6)) if masks == "exact" else (None,))
    for samples in ((2, 4) if levels == "antithetic" else (3,))
]


def name(form):
    return f"{form.masks}-{form.levels}-{form.subsets}-{form.samples}-{form.profile and 'profile'}"


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_every_form_has_the_elbo_as_its_mean(form):
    found, error = mean(form, copies(120_000))
    target = elbo_of_tokens(range(LENGTH))
    assert float(target.sum()) == pytest.approx(TOY.log_p(ROW), abs=1e-6)  # the toy is consistent
    agree(found, error, target)


@pytest.mark.parametrize("form", FORMS[::3], ids=name)
def test_anchors_are_conditions_and_have_no_term(form):
    free = [True, False, True, True, False]
    found, error = mean(form, copies(60_000, free=free))
    target = elbo_of_tokens([0, 2, 3])
    fixed = tuple(not f for f in free)
    assert float(target.sum()) == pytest.approx(TOY.log_p(ROW, fixed), abs=1e-6)
    agree(found, error, target)
    assert found[1] == found[4] == 0


def linear_variance(form, n=60):
    """Variance of the estimate where a hidden token's log-probability is linear in the share of hidden tokens."""
    many = response([[0] * n] * 20_000)
    (views,) = form.sample_masks(many, 1, torch.Generator().manual_seed(0))
    logp = views.masked * (-0.1 - 3 * views.masked.sum(2, keepdim=True) / n)
    return float((logp * views.loss_weights).sum((0, 2)).var())


def test_an_antithetic_pair_covers_every_token_and_cancels_what_is_linear_in_the_count():
    pair = Elbo(num_samples=2, masks="exact", timestep_sampling="antithetic", subsets="circular")
    (views,) = pair.sample_masks(copies(500), 1, torch.Generator().manual_seed(0))
    assert bool((views.masked.sum(2).sum(0) == LENGTH + 1).all())  # k and n + 1 - k
    assert bool(views.masked.any(0).all())
    assert linear_variance(pair) < 1e-6
    assert linear_variance(Elbo(num_samples=2, masks="exact")) > 100


def test_strata_take_the_variance_over_time_down_by_the_stated_powers():
    single = linear_variance(Elbo(num_samples=1, masks="exact"))
    shares = {
        levels: linear_variance(Elbo(num_samples=4, masks="exact", timestep_sampling=levels)) / single
        for levels in ("independent", "systematic", "jittered")
    }
    assert shares["independent"] == pytest.approx(1 / 4, rel=0.05)
    assert shares["systematic"] == pytest.approx(1 / 16, rel=0.05)
    assert shares["jittered"] == pytest.approx(1 / 64, rel=0.05)


def test_espos_pair_is_a_complement_and_may_be_empty():
    pair = Elbo(num_samples=2, masks="rao_blackwell", timestep_sampling="antithetic", subsets="circular")
    (views,) = pair.sample_masks(copies(3000), 1, torch.Generator().manual_seed(0))
    assert torch.equal(views.masked[0], ~views.masked[1])
    empty = (~views.needs_forward).any(0).float().mean()
    assert float(empty) == pytest.approx(2 / (LENGTH + 1), abs=0.04)


def test_circular_subsets_hide_every_token_about_equally_often():
    (views,) = Elbo(num_samples=4, masks="exact", subsets="circular").sample_masks(
        copies(300), 1, torch.Generator().manual_seed(1)
    )
    times = views.masked.sum(0)
    assert int((times.amax(1) - times.amin(1)).max()) <= 1


def test_levels_are_uniform_and_fill_their_strata():
    for levels in ("independent", "systematic", "jittered", "antithetic"):
        u = sample_uniforms(levels, 4, 50_000, torch.Generator().manual_seed(0))
        # A view drawn at random is uniform, whatever the others are.
        assert float(u.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(u.var()) == pytest.approx(1 / 12, abs=0.003)
    jittered = sample_uniforms("jittered", 4, 100, torch.Generator().manual_seed(0))
    assert torch.equal((jittered * 4).long(), torch.arange(4)[:, None].expand(4, 100))


def test_counts_have_the_chances_that_the_profile_says():
    n = torch.tensor([2, 4]).repeat(40_000)
    u = torch.rand(1, len(n), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count, chance = importance_sampled_counts(u, (0.0, 3.0, 6.0), n, 4)
    for size in (2, 4):
        mine = count[0][n == size]
        weights = torch.tensor([6 * k / size + 3 * DEFENSIVE_FRACTION for k in range(1, size + 1)])
        q = weights / weights.sum()
        assert (torch.bincount(mine, minlength=size + 1)[1:] / len(mine)).tolist() == pytest.approx(
            q.tolist(), abs=0.01
        )
        assert chance[0][n == size].tolist()[:50] == pytest.approx(q[mine - 1].tolist()[:50], abs=1e-6)


def test_a_constant_profile_is_none():
    u = sample_uniforms("jittered", 3, 500, torch.Generator().manual_seed(0))
    n = torch.randint(1, 9, (500,), generator=torch.Generator().manual_seed(1))
    count, chance = importance_sampled_counts(u, (2.0, 2.0, 2.0), n, 8)
    assert torch.equal(count, uniform_counts(u, 1, n))
    torch.testing.assert_close(chance, (1.0 / n).expand(3, -1).double())


def test_a_fitted_profile_takes_out_what_the_level_adds():
    """Where the surprise of a hidden token is linear in the share of hidden ones, nothing of the variance is left."""
    form = Elbo(num_samples=1, masks="exact", importance_sampling="fitted")
    many = response([[0] * 60] * 4000)
    (views,) = form.sample_masks(many, 1, torch.Generator().manual_seed(0))
    seen = LossHistory()
    logp = views.masked * (-0.1 - 3 * views.masked.sum(2, keepdim=True) / 60)
    seen.update(loss_by_mask_ratio(logp, views))
    line = [0.1 + 3 * j / (NUM_KNOTS - 1) for j in range(NUM_KNOTS)]
    assert seen.importance() == pytest.approx(
        line, abs=0.2
    )  # a knot averages over its neighbourhood: highest at the ends
    assert seen.importance()[1:-1] == pytest.approx(line[1:-1], abs=0.03)
    # f(k) = (v + 0) / (v + 0.4 mean) is left, v between 0.1 and 3.1: the defence has its price.
    assert linear_variance(form.fit(seen)) < 0.15 * linear_variance(form)


def test_surprise_fades_and_an_empty_view_says_nothing():
    seen = LossHistory()
    assert seen.importance() is None
    assert Elbo(masks="exact", importance_sampling="fitted").fit(seen).importance_sampling is None
    seen.update(torch.tensor([[1.0] * NUM_KNOTS, [4.0] * NUM_KNOTS]))
    assert seen.importance() == (2.0,) * NUM_KNOTS
    seen.update(torch.tensor([[0.1] * NUM_KNOTS, [0.4] * NUM_KNOTS]))
    assert seen.num_observed == pytest.approx([1.0] * NUM_KNOTS)  # 0.9 of the first, and the second
    (views,) = Elbo(num_samples=1, masks="rao_blackwell").sample_masks(
        copies(4000), 1, torch.Generator().manual_seed(0)
    )
    looked = loss_by_mask_ratio(views.masked * -2.0, views)
    assert float(looked[0].sum()) == pytest.approx(int(views.needs_forward.sum()), abs=1e-6)
    assert float(looked[1].sum()) == pytest.approx(4 * int(views.needs_forward.sum()), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples": 3, "levels": "antithetic"}, "come in pairs"),
        ({"subsets": "circular"}, "masks bernoulli"),
        ({"profile": "fitted"}, "set masks=exact"),
        ({"masks": "exact", "profile": (1.0, -1.0)}, "none below 0"),
        ({"masks": "exact", "profile": (0.0, 0.0)}, "not all 0"),
        ({"masks": "exact", "profile": (1.0,)}, "2 numbers or more"),
    ],
)
def test_impossible_forms_are_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        Elbo(**settings)
