"""Every estimator x credit x objective x pruning that a recipe admits takes a step; a new member is picked up."""

import itertools
import math
from typing import get_args

import pytest
import torch

from stipule.errors import RecipeError
from stipule.config.recipe import parse_recipe
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.rollouts.pruning import FixedCutoff
from stipule.training import settings
from stipule.training.context import RunContext
from stipule.training.rl_step import update_policy
from tests.toys import anchored, prompts, random_policy

GROUP, LENGTH = 4, 12
REWARD = torch.tensor([1.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 1.0])
# What a kind needs to fit a response of 12 tokens.
FITTING = {"spg": {"block": 6}}


def kinds(union):
    return [member.kind for member in get_args(union)]


def wanted(estimator, credit, objective, pruned):
    return {
        "task": {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]},
        "sampler": {"gen_length": LENGTH, "steps": LENGTH, "block_length": 6, "temperature": 1.0},
        "pruning": {"spatial": {"ratio": 0.2 * pruned}, "temporal": {"cutoff": 0.2 * pruned}},
        "estimator": {"kind": estimator} | FITTING.get(estimator, {}),
        "credit": {"kind": credit},
        "objective": {"kind": objective},
        "training": {"num_generations": GROUP, "num_iterations": 2, "micro_batch_size": 3},
    }


@pytest.fixture(scope="module")
def rolled():
    """Responses to two problems, without and with pruning."""
    policy = random_policy()
    sampler = SemiAutoregressiveSampler(gen_length=LENGTH, steps=LENGTH, block_length=6, temperature=1.0)
    asked = prompts(policy, 2).repeat(GROUP)
    noise = sampler.sample_noise(2 * GROUP, torch.Generator().manual_seed(0))
    placed = anchored(policy, 2 * GROUP, LENGTH, 2)
    return {
        False: sampler(policy, asked, noise),
        True: sampler(policy, asked, noise, placed, FixedCutoff(cutoff=0.2)),
    }


COMBINATIONS = list(
    itertools.product(
        kinds(settings.AnyEstimator), kinds(settings.AnyAdvantage), kinds(settings.AnyObjective), (False, True)
    )
)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(map(str, c)))
def test_every_admitted_combination_takes_a_step(combination, rolled):
    try:
        recipe = parse_recipe(wanted(*combination))
    except RecipeError as refusal:
        # The one refusal among defaults: SPG with the KL that GRPO has by default.
        assert combination[0] == "spg" and "objective.beta" in str(refusal)
        recipe = parse_recipe(wanted(*combination), ["objective.beta=0"])
    policy, responses = random_policy(), rolled[combination[3]]
    policy.model.requires_grad_(True)
    policy.ref_model = random_policy(1).model if recipe.objective.beta > 0 else None
    before = [p.detach().clone() for p in policy.trainable_parameters().values()]
    optimizer = torch.optim.SGD(policy.trainable_parameters().values(), lr=1e-3)
    run = RunContext.single_process(recipe, policy, optimizer)
    clock = run.timer
    found = update_policy(run, responses, recipe.advantage(REWARD, GROUP), 0)
    assert all(math.isfinite(value) for value in found.values()), found
    assert found["policy/grad_norm"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.trainable_parameters().values(), strict=True))
    # Nothing is scored twice or for nobody: no old policy without a ratio, no reference without a KL.
    estimator, objective = recipe.estimator, recipe.objective
    if not objective.uses_old_policy and objective.beta == 0:
        assert clock.nfe["logps"] == 0
    assert clock.nfe["update"] <= 2 * len(REWARD) * estimator.num_masks(LENGTH, LENGTH)


def test_an_estimator_without_noise_scores_old_and_reference_once(rolled):
    for kl, calls in ((0.0, 0), (0.1, 1)):
        recipe = parse_recipe(wanted("autoregressive", "group_relative", "grpo", False), [f"objective.beta={kl}"])
        policy = random_policy()
        policy.model.requires_grad_(True)
        policy.ref_model = random_policy(1).model
        optimizer = torch.optim.SGD(policy.trainable_parameters().values(), lr=1e-3)
        run = RunContext.single_process(recipe, policy, optimizer)
        clock = run.timer
        update_policy(run, rolled[False], recipe.advantage(REWARD, GROUP), 0)
        assert clock.nfe["logps"] == calls * int(rolled[False].loss_mask.sum())
        assert clock.nfe["update"] == 2 * int(rolled[False].loss_mask.sum())


def test_rows_without_advantage_are_neither_scored_nor_updated(rolled):
    recipe = parse_recipe(wanted("one_step", "group_relative", "grpo", False), ["objective.beta=0"])
    policy = random_policy()
    policy.model.requires_grad_(True)
    optimizer = torch.optim.SGD(policy.trainable_parameters().values(), lr=1e-3)
    reward = torch.tensor([1.0, 0.0, 0.1, 0.0, 0.5, 0.5, 0.5, 0.5])
    run = RunContext.single_process(recipe, policy, optimizer)
    clock = run.timer
    update_policy(run, rolled[False], recipe.advantage(reward, GROUP), 0)
    assert (clock.nfe["logps"], clock.nfe["update"]) == (4, 8)


@pytest.mark.parametrize(
    ("overrides", "words"),
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
        (["objective.kind=reinforce", "objective.beta=0.1"], "grpo, sequence_ratio would have it"),
        (["objective.kind=gspo", "objective.kl_estimator=k3"], "objective.kl_estimator is 'k3'"),
        (["estimator.timestep_sampling=antithetic"], "come in pairs"),
        (["training.num_generations=1"], "needs 2 or more"),
    ],
)
def test_impossible_combinations_are_refused_before_anything_loads(overrides, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(wanted("elbo", "group_relative", "grpo", False), overrides)
