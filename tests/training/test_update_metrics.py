"""Metrics, loss history, processes and generators of the inner updates, each compared with a direct computation."""

import pytest
import torch

from stipule.estimators.importance_sampling import LossHistory, loss_by_mask_ratio
from stipule.estimators.token_logps import masked_token_logps
from stipule.rng import make_generator
from stipule.training.micro_batches import MicroBatch, local_micro_batches
from stipule.training.rl_step import rl_step, update_policy
from tests.toys import COUNTDOWN
from tests.training.test_update_policy import ADVANTAGES, ROWS, context, recipe_of, sampled_rollouts

STEP, SEED = 5, 7
FITTED = ("estimator.masks=exact", "estimator.importance_sampling=fitted", "estimator.num_samples=3")


@pytest.fixture(scope="module")
def rollouts():
    return sampled_rollouts()


def masks_of(recipe, kept):
    return recipe.estimator.sample_masks(kept, 2, make_generator(SEED, STEP, "views"))


def with_advantage(rollouts):
    return rollouts[(ADVANTAGES != 0).nonzero()[:, 0]]


def second_rank(run, names=()):
    """Pretends that a second process has the same parts of every sum as this one, and metrics of these names."""
    processes = run.processes
    processes.reduce_sum = lambda value: 2 * value
    processes.all_gather_object = lambda local: [*names, *local, *local]


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_the_variance_between_mask_samples_is_that_of_the_first_update(micro_batch_size, rollouts):
    recipe = recipe_of(0.0, "estimator.num_samples=3", f"training.micro_batch_size={micro_batch_size}")
    run, kept = context(recipe), with_advantage(rollouts)
    masks = masks_of(recipe, kept)[0]
    with torch.no_grad():
        token_logps = masked_token_logps(run.policy, kept, masks)
    variances = []
    for row in range(len(kept)):
        tokens = int(masks.normalizer_mask[row].sum())
        estimates = [
            3 * sum(float(x) * float(w) for x, w in zip(logps, weights, strict=True)) / tokens
            for logps, weights in zip(token_logps[:, row], masks.loss_weights[:, row], strict=True)
        ]
        mean = sum(estimates) / 3
        variances.append(sum((estimate - mean) ** 2 for estimate in estimates) / 2)
    metrics = update_policy(run, rollouts, ADVANTAGES, STEP)
    assert metrics["variance/per_sample"] == pytest.approx(sum(variances) / len(kept), rel=1e-3)


@pytest.mark.parametrize("micro_batch_size", [3, 8])
def test_the_largest_ratio_is_the_largest_of_both_updates(micro_batch_size, rollouts):
    """Before the first update all ratios are 1. So without a first update that changes something the largest is 1."""
    overrides = ("objective.epsilon=0.9", f"training.micro_batch_size={micro_batch_size}")
    metrics = update_policy(context(recipe_of(0.0, *overrides)), rollouts, ADVANTAGES, STEP)
    whole = update_policy(context(recipe_of(0.0, *overrides[:1])), rollouts, ADVANTAGES, STEP)
    assert metrics["policy/ratio_max"] == pytest.approx(whole["policy/ratio_max"], rel=1e-3)
    assert metrics["policy/ratio_max"] > 1.05
    once = update_policy(context(recipe_of(0.0, *overrides, "training.num_iterations=1")), rollouts, ADVANTAGES, STEP)
    assert once["policy/ratio_max"] == once["policy/ratio"] == pytest.approx(1.0)


@pytest.mark.parametrize("micro_batch_size", [3, 8])
def test_the_history_gets_the_losses_of_every_update_once(micro_batch_size, rollouts):
    """With a learning rate of 0 both updates see the same weights, so the losses can be computed beforehand."""
    recipe = recipe_of(0.0, *FITTED, f"training.micro_batch_size={micro_batch_size}")
    run, kept = context(recipe), with_advantage(rollouts)
    run.optimizer.param_groups[0]["lr"] = 0.0
    before = torch.arange(18, dtype=torch.float64).view(2, 9) + 1
    expected = LossHistory()
    expected.update(before)
    run.state.loss_history.update(before)
    masks = recipe.estimator.fit(run.state.loss_history).sample_masks(kept, 2, make_generator(SEED, STEP, "views"))
    with torch.no_grad():
        observed = [loss_by_mask_ratio(masked_token_logps(run.policy, kept, m), m) for m in masks]
    expected.update(sum(observed))
    update_policy(run, rollouts, ADVANTAGES, STEP)
    assert run.state.loss_history.num_observed == pytest.approx(expected.num_observed)
    assert run.state.loss_history.sum_squares == pytest.approx(expected.sum_squares, rel=1e-4)


def test_sums_are_over_ranks_and_maxima_are_not_added(rollouts):
    recipe = recipe_of(0.3, *FITTED)
    alone, together = context(recipe), context(recipe)
    expected = update_policy(alone, rollouts, ADVANTAGES, STEP)
    second_rank(together, ["policy/of_the_other_rank"])
    metrics = update_policy(together, rollouts, ADVANTAGES, STEP)
    once = {"policy/ratio_max", "policy/grad_norm", "policy/frac_zero_advantage"}
    assert metrics.pop("policy/of_the_other_rank") == 0.0
    assert metrics == pytest.approx({k: v * (1 if k in once else 2) for k, v in expected.items()})
    observed = alone.state.loss_history.num_observed
    assert together.state.loss_history.num_observed == pytest.approx([2 * number for number in observed])


def test_a_rank_without_rows_takes_part_in_every_exchange(rollouts):
    """The other rank has all rows: names, losses and gradients come from it."""
    run = context(recipe_of(0.0, *FITTED))
    calls = []
    run.processes.local_slice = lambda count, unit=1: slice(0, 0)
    run.processes.any_rank = lambda flag: calls.append(("any", flag)) or True
    run.processes.all_reduce_gradients = lambda parameters: calls.append(("gradients", list(parameters)))
    names = iter((["policy/loss", "policy/ratio_max"], ["variance/estimate"]))
    run.processes.all_gather_object = lambda local: [*local, *next(names)]
    run.processes.reduce_sum = lambda value: value + 3
    run.processes.reduce_max = lambda value: value + 5
    run.processes.clip_grad_norm = lambda parameters, max_grad_norm: torch.tensor(float(max_grad_norm))
    metrics = update_policy(run, rollouts, ADVANTAGES, STEP)
    assert (metrics["policy/loss"], metrics["policy/ratio_max"]) == (3, 5)
    assert metrics["policy/grad_norm"] == pytest.approx(0.7)
    assert metrics["variance/estimate"] == pytest.approx(3 / 6)  # six rows have an advantage
    parameters = list(run.policy.trainable_parameters().values())
    gradients = [value for name, value in calls if name == "gradients"]
    assert [[id(p) for p in value] for value in gradients] == [[id(p) for p in parameters]] * 2
    assert ("any", False) in calls
    assert run.state.loss_history.num_observed == [3.0] * 9 == run.state.loss_history.sum_squares


@pytest.mark.parametrize("rank", [0, 1])
def test_dropout_is_drawn_by_step_update_and_rank(rank, rollouts):
    run = context(recipe_of(0.0))
    run.processes.rank, run.processes.local_slice = rank, lambda count: slice(0, count)
    seeds, update_mode = [], run.policy.update_mode
    run.policy.update_mode = lambda generator: seeds.append(generator.initial_seed()) or update_mode(generator)
    update_policy(run, rollouts, ADVANTAGES, STEP)
    purposes = ("dropout 0", "dropout 1")
    assert seeds == [make_generator(SEED, STEP, purpose, rank).initial_seed() for purpose in purposes]
    assert run.timer.seconds["update"] > 0 < run.timer.seconds["logps"]


def test_dummy_batches_of_a_sharded_rank_change_neither_metrics_nor_weights(rollouts):
    """A sharded rank with fewer micro-batches repeats a row, and that row counts nowhere."""
    plain, padded = context(recipe_of(0.3, *FITTED)), context(recipe_of(0.3, *FITTED))
    assert [batch.rows for batch in local_micro_batches(plain, ROWS)] == [slice(0, 3), slice(3, 6), slice(6, 8)]
    assert not any(batch.is_dummy for batch in local_micro_batches(plain, ROWS))
    padded.policy.sharded = True
    padded.processes.all_reduce_max = lambda count: count + 2 if count > 1 else count
    dummy = MicroBatch(slice(0, 1), is_dummy=True)
    assert local_micro_batches(padded, ROWS) == [*local_micro_batches(plain, ROWS), dummy, dummy]
    expected = update_policy(plain, rollouts, ADVANTAGES, STEP)
    assert update_policy(padded, rollouts, ADVANTAGES, STEP) == pytest.approx(expected, rel=1e-5)
    assert padded.state.loss_history == plain.state.loss_history
    for name, weight in padded.policy.trainable_parameters().items():
        assert torch.allclose(weight, plain.policy.trainable_parameters()[name], atol=1e-7), name


def test_a_rank_takes_its_own_rows(rollouts):
    run = context(recipe_of(0.0))
    run.processes.rank, run.processes.world_size = 1, 2
    assert [batch.rows for batch in local_micro_batches(run, 7)] == [slice(3, 6), slice(6, 7)]


def test_a_step_returns_what_it_sampled_with_advantages_of_the_rewards_and_metrics_of_the_update():
    overrides = ("sampler.temperature=2.0", "training.prompts_per_step=2", "training.micro_batch_size=8")
    problems, recipe = COUNTDOWN.problems("train")[:2], recipe_of(0.0, *overrides)
    run, again = context(recipe), context(recipe)
    object.__setattr__(recipe, "advantage", lambda rewards, n: rewards * n + ADVANTAGES)
    result = rl_step(run, problems, STEP)
    assert torch.equal(result.advantages, result.rewards.rewards * 4 + ADVANTAGES)
    assert result.metrics == update_policy(again, result.rollouts, result.advantages, STEP)
    assert result.metrics["policy/grad_norm"] > 0
