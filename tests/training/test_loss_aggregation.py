"""Loss, gradient and metrics of a step depend neither on micro-batches nor on processes nor on rows left out."""

import math

import pytest
import torch

from stipule.config.recipe import parse_recipe
from stipule.errors import RecipeError
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.training.context import RunContext
from stipule.training.rl_step import update_policy
from tests.toys import prompts, random_policy
from tests.training.processes import in_ranks

LENGTH, NUM_GENERATIONS = 12, 4
# The second group has equal rewards: its rows are left out where there is no KL term.
ADVANTAGES = torch.tensor([1.5, -0.5, -0.75, -0.25, 0.0, 0.0, 0.0, 0.0])
LAST_TOKENS = [12, 3, 7, 1, 12, 5, 2, 9]  # responses of very different lengths


def rollouts_of(policy):
    sampler = SemiAutoregressiveSampler(gen_length=LENGTH, steps=LENGTH, block_length=6, temperature=1.0)
    noise = sampler.sample_noise(2 * NUM_GENERATIONS, torch.Generator().manual_seed(0))
    rollouts = sampler(policy, prompts(policy, 2).repeat(NUM_GENERATIONS), noise)
    rollouts.completion_mask[:] = torch.arange(LENGTH) < torch.tensor(LAST_TOKENS)[:, None]
    return rollouts


def update(overrides, micro_batch_size, advantages=ADVANTAGES, learning_rate=0.1):
    """The metrics and the gradient of the last of two inner updates on all ranks."""
    data = {
        "task": {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]},
        "sampler": {"gen_length": LENGTH, "steps": LENGTH, "block_length": 6, "temperature": 1.0},
        "optimizer": {"max_grad_norm": 1e9},
        "training": {"num_generations": NUM_GENERATIONS, "num_iterations": 2, "micro_batch_size": micro_batch_size},
    }
    recipe = parse_recipe(data, overrides)
    policy = random_policy()
    rollouts = rollouts_of(policy)
    policy.model.requires_grad_(True)
    policy.ref_model = random_policy(1).model if recipe.objective.beta > 0 else None
    optimizer = torch.optim.SGD(policy.trainable_parameters().values(), lr=learning_rate)
    run = RunContext.single_process(recipe, policy, optimizer)
    metrics = update_policy(run, rollouts, advantages, 0)
    return metrics, torch.cat([p.grad.flatten() for p in policy.trainable_parameters().values()]).numpy()


def same(one, other):
    (metrics, gradient), (other_metrics, other_gradient) = one, other
    assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    assert abs(other_gradient - gradient).max() < 1e-5 * abs(gradient).max()


NO_KL = "objective.beta=0"
SETTINGS = [
    ["objective.kind=grpo", "objective.loss_aggregation=token", NO_KL, "estimator.kind=one_step"],
    ["objective.kind=grpo", "objective.loss_aggregation=token", "objective.beta=0.1", "estimator.kind=elbo"],
    ["objective.kind=grpo", "objective.loss_aggregation=token", NO_KL, "estimator.kind=unigrpo"],
    ["objective.kind=reinforce", "objective.loss_aggregation=token", "estimator.kind=spg", "estimator.block_length=6"],
    ["objective.kind=grpo", NO_KL, "estimator.kind=unigrpo", "estimator.t_min=0.01"],
    ["objective.kind=gspo", "objective.beta=0.1", "estimator.kind=elbo"],
    ["objective.kind=reinforce", "objective.loss_aggregation=sum", "estimator.kind=one_step"],
]


@pytest.mark.parametrize("overrides", SETTINGS, ids=" ".join)
def test_the_loss_does_not_depend_on_the_size_of_micro_batches(overrides):
    whole = update(overrides, 8)
    for micro_batch_size in (1, 3):
        same(whole, update(overrides, micro_batch_size))


@pytest.mark.parametrize("overrides", SETTINGS[:4], ids=" ".join)
def test_the_loss_does_not_depend_on_the_number_of_processes(overrides):
    expected = update(overrides, 3)
    for result in in_ranks(2, update, overrides, 3):
        same(expected, result)


def test_a_token_mean_is_over_all_tokens_of_the_step_also_those_of_rows_left_out():
    """One inner update of a policy gradient: the loss is a sum over tokens that can be written down."""
    overrides = ["objective.kind=reinforce", "objective.loss_aggregation=token", "estimator.kind=one_step"]
    overrides += ["estimator.p_mask_prompt=0", "training.num_iterations=1"]
    metrics, gradient = update(overrides, 3)
    sums, sum_gradient = update([*overrides[:1], "objective.loss_aggregation=sum", *overrides[2:]], 3)
    tokens_per_row = sum(LAST_TOKENS) / len(LAST_TOKENS)
    assert metrics["policy/loss"] == pytest.approx(sums["policy/loss"] / tokens_per_row, rel=1e-5)
    assert abs(gradient - sum_gradient / tokens_per_row).max() < 1e-6 * abs(gradient).max()


def test_the_published_token_mean_is_one_for_each_micro_batch():
    overrides = ["objective.kind=reinforce", "objective.loss_aggregation=token", "estimator.kind=one_step"]
    overrides += ["estimator.p_mask_prompt=0", "training.num_iterations=1"]
    rows = [update([*overrides, "objective.match_published_code=true"], 1, ADVANTAGES * (torch.arange(8) == row))
            for row in range(4)]  # fmt: skip
    # With one row in each micro-batch it is the mean over rows of the row's mean.
    whole = update([*overrides, "objective.match_published_code=true"], 1)[0]["policy/loss"]
    assert whole == pytest.approx(sum(metrics["policy/loss"] for metrics, _ in rows), rel=1e-5)
    assert whole == pytest.approx(
        update([overrides[0], "objective.loss_aggregation=sequence", *overrides[2:]], 3)[0]["policy/loss"], rel=1e-5
    )
    assert whole != pytest.approx(
        update([*overrides, "objective.match_published_code=true"], 4)[0]["policy/loss"], rel=0.05
    )


@pytest.mark.parametrize("kind", ["grpo", "reinforce"])
def test_a_published_mean_that_would_change_nothing_is_refused(kind):
    with pytest.raises(RecipeError, match="match_published_code is true with loss_aggregation sequence.*=token"):
        update([f"objective.kind={kind}", "objective.match_published_code=true"], 1)


@pytest.mark.parametrize("objective", ["grpo", "gspo"])
def test_metrics_are_means_over_the_rows_that_they_describe(objective):
    """Half of the rows have no advantage and are left out, and UniGRPO masks nothing in some of the others."""
    overrides = [f"objective.kind={objective}", NO_KL, "estimator.kind=unigrpo", "estimator.t_min=0.01"]
    metrics, _ = update([*overrides, "training.num_iterations=1"], 3)
    assert metrics["policy/frac_zero_advantage"] == 0.5
    assert metrics["policy/ratio"] == pytest.approx(1, abs=1e-6)
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-6)
    assert metrics["policy/clip_ratio"] == metrics["policy/frac_bounded"] == 0


def test_an_update_that_moves_the_policy_very_far_stays_finite_and_says_so():
    overrides = ["objective.kind=grpo", "objective.beta=0.04", "estimator.kind=one_step"]
    metrics, gradient = update(overrides, 8, learning_rate=100.0)
    assert metrics["policy/frac_bounded"] > 0.1
    assert all(math.isfinite(value) for value in metrics.values()) and math.isfinite(abs(gradient).max())
