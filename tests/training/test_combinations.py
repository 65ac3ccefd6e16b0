"""Every allowed estimator x advantage x objective x pruning takes a step; new kinds are tested automatically."""

import itertools
import math

import pytest
import torch

from stipule.config.recipe import parse_recipe
from stipule.config.validation import kinds_of
from stipule.errors import RecipeError
from stipule.rollouts.pruning import FixedCutoff
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.training import settings
from stipule.training.context import RunContext
from stipule.training.rl_step import update_policy
from tests.toys import anchored, prompts, random_policy

NUM_GENERATIONS, LENGTH = 4, 12
REWARD = torch.tensor([1.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 1.0])
# Settings that a kind needs for a response of 12 tokens.
FITTING = {"spg": {"block_length": 6}}


def kinds(union):
    return kinds_of(union)


def recipe_data(estimator, advantage, objective, pruned):
    return {
        "task": {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]},
        "sampler": {"gen_length": LENGTH, "steps": LENGTH, "block_length": 6, "temperature": 1.0},
        "pruning": {"spatial": {"ratio": 0.2 * pruned}, "temporal": {"cutoff": 0.2 * pruned}},
        "estimator": {"kind": estimator} | FITTING.get(estimator, {}),
        "advantage": {"kind": advantage},
        "objective": {"kind": objective},
        "training": {"num_generations": NUM_GENERATIONS, "num_iterations": 2, "micro_batch_size": 3},
    }


@pytest.fixture(scope="module")
def rollouts_by_pruning():
    """Responses to two problems, without and with pruning."""
    policy = random_policy()
    sampler = SemiAutoregressiveSampler(gen_length=LENGTH, steps=LENGTH, block_length=6, temperature=1.0)
    batch = prompts(policy, 2).repeat(NUM_GENERATIONS)
    noise = sampler.sample_noise(2 * NUM_GENERATIONS, torch.Generator().manual_seed(0))
    anchors = anchored(policy, 2 * NUM_GENERATIONS, LENGTH, 2)
    return {
        False: sampler(policy, batch, noise),
        True: sampler(policy, batch, noise, anchors, FixedCutoff(cutoff=0.2)),
    }


COMBINATIONS = list(
    itertools.product(
        kinds(settings.AnyEstimator), kinds(settings.AnyAdvantage), kinds(settings.AnyObjective), (False, True)
    )
)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(map(str, c)))
def test_every_admitted_combination_takes_a_step(combination, rollouts_by_pruning):
    try:
        recipe = parse_recipe(recipe_data(*combination))
    except RecipeError as refusal:
        # The one refusal among defaults: SPG with the KL that GRPO has by default.
        assert combination[0] == "spg" and "objective.beta" in str(refusal)
        recipe = parse_recipe(recipe_data(*combination), ["objective.beta=0"])
    policy, rollouts = random_policy(), rollouts_by_pruning[combination[3]]
    policy.model.requires_grad_(True)
    policy.ref_model = random_policy(1).model if recipe.objective.beta > 0 else None
    before = [p.detach().clone() for p in policy.trainable_parameters().values()]
    optimizer = torch.optim.SGD(policy.trainable_parameters().values(), lr=1e-3)
    run = RunContext.single_process(recipe, policy, optimizer)
    timer = run.timer
    metrics = update_policy(run, rollouts, recipe.advantage(REWARD, NUM_GENERATIONS), 0)
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    assert metrics["policy/grad_norm"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.trainable_parameters().values(), strict=True))
    # No needless forward pass: no old policy without a ratio, no reference without a KL.
    estimator, objective = recipe.estimator, recipe.objective
    if not objective.uses_old_policy and objective.beta == 0:
        assert timer.nfe["logps"] == 0
    assert timer.nfe["update"] <= 2 * len(REWARD) * estimator.num_masks(LENGTH, LENGTH)


def test_an_estimator_without_noise_evaluates_old_and_reference_once(rollouts_by_pruning):
    for beta, calls in ((0.0, 0), (0.1, 1)):
        recipe = parse_recipe(
            recipe_data("autoregressive", "group_relative", "grpo", False), [f"objective.beta={beta}"]
        )
        policy = random_policy()
        policy.model.requires_grad_(True)
        policy.ref_model = random_policy(1).model
        optimizer = torch.optim.SGD(policy.trainable_parameters().values(), lr=1e-3)
        run = RunContext.single_process(recipe, policy, optimizer)
        timer = run.timer
        update_policy(run, rollouts_by_pruning[False], recipe.advantage(REWARD, NUM_GENERATIONS), 0)
        assert timer.nfe["logps"] == calls * int(rollouts_by_pruning[False].loss_mask.sum())
        assert timer.nfe["update"] == 2 * int(rollouts_by_pruning[False].loss_mask.sum())


def test_rows_without_advantage_need_no_forward_pass(rollouts_by_pruning):
    recipe = parse_recipe(recipe_data("one_step", "group_relative", "grpo", False), ["objective.beta=0"])
    policy = random_policy()
    policy.model.requires_grad_(True)
    optimizer = torch.optim.SGD(policy.trainable_parameters().values(), lr=1e-3)
    reward = torch.tensor([1.0, 0.0, 0.1, 0.0, 0.5, 0.5, 0.5, 0.5])
    run = RunContext.single_process(recipe, policy, optimizer)
    timer = run.timer
    update_policy(run, rollouts_by_pruning[False], recipe.advantage(reward, NUM_GENERATIONS), 0)
    assert (timer.nfe["logps"], timer.nfe["update"]) == (4, 8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["estimator.kind=spg", "estimator.block_length=6"], "would depend on the reward"),
        (
            [
                "estimator.kind=spg",
                "estimator.block_length=6",
                "objective.beta=0",
                "advantage.kind=wd1",
                "advantage.positive_only=true",
            ],
            "advantages of both signs",
        ),
        (["estimator.kind=spg", "objective.beta=0", "estimator.block_length=5"], "must divide sampler.gen_length"),
        (["objective.kind=reinforce", "objective.beta=0.1"], "kind grpo or gspo has it"),
        (["objective.kind=gspo", "objective.kl_estimator=k3"], "objective.kl_estimator is 'k3'"),
        (["estimator.timestep_sampling=antithetic"], "come in pairs"),
        (["training.num_generations=1"], "needs 2 or more"),
    ],
)
def test_impossible_combinations_are_refused_before_anything_loads(overrides, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe_data("elbo", "group_relative", "grpo", False), overrides)
