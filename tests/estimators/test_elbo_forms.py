"""Every form of the ELBO has the enumerated ELBO of each token as its mean."""

import pytest
import torch

from stipule.errors import RecipeError
from stipule.estimators.elbo import Elbo
from stipule.estimators.importance_sampling import (
    DEFENSIVE_FRACTION,
    NUM_KNOTS,
    LossHistory,
    importance_sampled_counts,
    loss_by_mask_ratio,
)
from stipule.estimators.timestep_sampling import sample_uniforms, uniform_counts
from tests.estimators.enumeration import COMPLETION, LENGTH, TOY, agree, copies, elbo_of_tokens, mean
from tests.toys import response

FORMS = [
    Elbo(num_samples=samples, masks=masks, timestep_sampling=method, subsets=subsets, importance_sampling=importance)
    for masks in ("exact", "rao_blackwell")
    for method in ("independent", "low_discrepancy", "stratified", "antithetic")
    for subsets in ("independent", "cyclic")
    for importance in ((None, (0.3, 1.3, 0.6)) if masks == "exact" else (None,))
    for samples in ((2, 4) if method == "antithetic" else (3,))
]


def name(form):
    counts = "importance" if form.importance_sampling else "uniform"
    return f"{form.masks}-{form.timestep_sampling}-{form.subsets}-{form.num_samples}-{counts}"


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_every_form_has_the_elbo_as_its_mean(form):
    result, error = mean(form, copies(120_000))
    target = elbo_of_tokens(range(LENGTH))
    assert float(target.sum()) == pytest.approx(TOY.log_p(COMPLETION), abs=1e-6)  # the toy is consistent
    agree(result, error, target)


@pytest.mark.parametrize("form", FORMS[::3], ids=name)
def test_anchors_are_conditioned_on_and_have_no_term(form):
    sampled_mask = [True, False, True, True, False]
    result, error = mean(form, copies(60_000, sampled_mask=sampled_mask))
    target = elbo_of_tokens([0, 2, 3])
    fixed = tuple(not f for f in sampled_mask)
    assert float(target.sum()) == pytest.approx(TOY.log_p(COMPLETION, fixed), abs=1e-6)
    agree(result, error, target)
    assert result[1] == result[4] == 0


def linear_variance(form, n=60):
    """Variance of the estimate if a masked token's log-probability is linear in the fraction of masked tokens."""
    many = response([[0] * n] * 20_000)
    (mask_samples,) = form.sample_masks(many, 1, torch.Generator().manual_seed(0))
    logp = mask_samples.masked * (-0.1 - 3 * mask_samples.masked.sum(2, keepdim=True) / n)
    return float((logp * mask_samples.loss_weights).sum((0, 2)).var())


def test_an_antithetic_pair_masks_every_token_and_cancels_a_linear_term():
    pair = Elbo(num_samples=2, masks="exact", timestep_sampling="antithetic", subsets="cyclic")
    (mask_samples,) = pair.sample_masks(copies(500), 1, torch.Generator().manual_seed(0))
    assert bool((mask_samples.masked.sum(2).sum(0) == LENGTH + 1).all())  # k and n + 1 - k
    assert bool(mask_samples.masked.any(0).all())
    assert linear_variance(pair) < 1e-6
    assert linear_variance(Elbo(num_samples=2, masks="exact")) > 100


def test_stratified_mask_ratios_reduce_the_variance_by_the_stated_powers():
    single = linear_variance(Elbo(num_samples=1, masks="exact"))
    fractions = {
        method: linear_variance(Elbo(num_samples=4, masks="exact", timestep_sampling=method)) / single
        for method in ("independent", "low_discrepancy", "stratified")
    }
    assert fractions["independent"] == pytest.approx(1 / 4, rel=0.05)
    assert fractions["low_discrepancy"] == pytest.approx(1 / 16, rel=0.05)
    assert fractions["stratified"] == pytest.approx(1 / 64, rel=0.05)


def test_espos_pair_is_a_complement_and_may_be_empty():
    pair = Elbo(num_samples=2, masks="rao_blackwell", timestep_sampling="antithetic", subsets="cyclic")
    (mask_samples,) = pair.sample_masks(copies(3000), 1, torch.Generator().manual_seed(0))
    assert torch.equal(mask_samples.masked[0], ~mask_samples.masked[1])
    empty = (~mask_samples.needs_forward).any(0).float().mean()
    assert float(empty) == pytest.approx(2 / (LENGTH + 1), abs=0.04)


def test_cyclic_subsets_mask_every_token_about_equally_often():
    (mask_samples,) = Elbo(num_samples=4, masks="exact", subsets="cyclic").sample_masks(
        copies(300), 1, torch.Generator().manual_seed(1)
    )
    times = mask_samples.masked.sum(0)
    assert int((times.amax(1) - times.amin(1)).max()) <= 1


def test_mask_ratios_are_uniform_and_fill_their_strata():
    for method in ("independent", "low_discrepancy", "stratified", "antithetic"):
        u = sample_uniforms(method, 4, 50_000, torch.Generator().manual_seed(0))
        # One sample alone is uniform, even if the samples depend on each other.
        assert float(u.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(u.var()) == pytest.approx(1 / 12, abs=0.003)
    uniforms = sample_uniforms("stratified", 4, 100, torch.Generator().manual_seed(0))
    assert torch.equal((uniforms * 4).long(), torch.arange(4)[:, None].expand(4, 100))


def test_counts_have_the_probabilities_of_importance_sampling():
    n = torch.tensor([2, 4]).repeat(40_000)
    u = torch.rand(1, len(n), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count, probability = importance_sampled_counts(u, (0.0, 3.0, 6.0), n, 4)
    for size in (2, 4):
        mine = count[0][n == size]
        weights = torch.tensor([6 * k / size + 3 * DEFENSIVE_FRACTION for k in range(1, size + 1)])
        q = weights / weights.sum()
        assert (torch.bincount(mine, minlength=size + 1)[1:] / len(mine)).tolist() == pytest.approx(
            q.tolist(), abs=0.01
        )
        assert probability[0][n == size].tolist()[:50] == pytest.approx(q[mine - 1].tolist()[:50], abs=1e-6)


def test_constant_importance_equals_uniform_sampling():
    u = sample_uniforms("stratified", 3, 500, torch.Generator().manual_seed(0))
    n = torch.randint(1, 9, (500,), generator=torch.Generator().manual_seed(1))
    count, probability = importance_sampled_counts(u, (2.0, 2.0, 2.0), n, 8)
    assert torch.equal(count, uniform_counts(u, 1, n))
    torch.testing.assert_close(probability, (1.0 / n).expand(3, -1).double())


def test_fitted_importance_sampling_removes_the_variance_of_the_mask_ratio():
    """If the loss of a masked token is linear in the fraction of masked tokens, almost no variance remains."""
    form = Elbo(num_samples=1, masks="exact", importance_sampling="fitted")
    many = response([[0] * 60] * 4000)
    (mask_samples,) = form.sample_masks(many, 1, torch.Generator().manual_seed(0))
    seen = LossHistory()
    logp = mask_samples.masked * (-0.1 - 3 * mask_samples.masked.sum(2, keepdim=True) / 60)
    seen.update(loss_by_mask_ratio(logp, mask_samples))
    line = [0.1 + 3 * j / (NUM_KNOTS - 1) for j in range(NUM_KNOTS)]
    assert seen.importance() == pytest.approx(
        line, abs=0.2
    )  # a knot averages over its neighbourhood: largest error at the ends
    assert seen.importance()[1:-1] == pytest.approx(line[1:-1], abs=0.03)
    # f(k) = (v + 0) / (v + 0.4 mean) is left, v between 0.1 and 3.1: the defensive fraction adds some variance.
    assert linear_variance(form.fit(seen)) < 0.15 * linear_variance(form)


def test_older_losses_count_less_and_an_empty_mask_adds_nothing():
    seen = LossHistory()
    assert seen.importance() is None
    assert Elbo(masks="exact", importance_sampling="fitted").fit(seen).importance_sampling is None
    seen.update(torch.tensor([[1.0] * NUM_KNOTS, [4.0] * NUM_KNOTS]))
    assert seen.importance() == (2.0,) * NUM_KNOTS
    seen.update(torch.tensor([[0.1] * NUM_KNOTS, [0.4] * NUM_KNOTS]))
    assert seen.num_observed == pytest.approx([1.0] * NUM_KNOTS)  # 0.9 of the first, and the second
    (mask_samples,) = Elbo(num_samples=1, masks="rao_blackwell").sample_masks(
        copies(4000), 1, torch.Generator().manual_seed(0)
    )
    looked = loss_by_mask_ratio(mask_samples.masked * -2.0, mask_samples)
    assert float(looked[0].sum()) == pytest.approx(int(mask_samples.needs_forward.sum()), abs=1e-6)
    assert float(looked[1].sum()) == pytest.approx(4 * int(mask_samples.needs_forward.sum()), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 3, "timestep_sampling": "antithetic"}, "come in pairs"),
        ({"subsets": "cyclic"}, "masks bernoulli"),
        ({"importance_sampling": "fitted"}, "set masks=exact"),
        ({"masks": "exact", "importance_sampling": (1.0, -1.0)}, "none below 0"),
        ({"masks": "exact", "importance_sampling": (0.0, 0.0)}, "not all 0"),
        ({"masks": "exact", "importance_sampling": (1.0,)}, "2 numbers or more"),
    ],
)
def test_impossible_forms_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Elbo(**settings)
