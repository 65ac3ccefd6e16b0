"""Every estimator x credit x objective x pruning that a recipe admits takes a step; a new member is picked up."""

import itertools
import math
from typing import get_args

import pytest
import torch
from accelerate import Accelerator

from stipule.errors import RecipeError
from stipule.recipe import parse_recipe
from stipule.rollouts.denoise import BlockDenoiser
from stipule.rollouts.pruning import Temporal
from stipule.training import settings
from stipule.training.clock import Clock
from stipule.training.update import learn
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
        "sampler": {"length": LENGTH, "steps": LENGTH, "block": 6, "temperature": 1.0},
        "pruning": {"spatial": {"ratio": 0.2 * pruned}, "temporal": {"cutoff": 0.2 * pruned}},
        "estimator": {"kind": estimator} | FITTING.get(estimator, {}),
        "credit": {"kind": credit},
        "objective": {"kind": objective},
        "training": {"group": GROUP, "updates": 2, "score_rows": 3},
    }


@pytest.fixture(scope="module")
def rolled():
    """Responses to two problems, without and with pruning."""
    policy = random_policy()
    sampler = BlockDenoiser(length=LENGTH, steps=LENGTH, block=6, temperature=1.0)
    asked = prompts(policy, 2).repeat(GROUP)
    noise = sampler.draw(2 * GROUP, torch.Generator().manual_seed(0))
    placed = anchored(policy, 2 * GROUP, LENGTH, 2)
    return {
        False: sampler(policy, asked, noise),
        True: sampler(policy, asked, noise, placed, Temporal(cutoff=0.2)),
    }


COMBINATIONS = list(
    itertools.product(
        kinds(settings.AnyEstimator), kinds(settings.AnyCredit), kinds(settings.AnyObjective), (False, True)
    )
)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(map(str, c)))
def test_every_admitted_combination_takes_a_step(combination, rolled):
    try:
        recipe = parse_recipe(wanted(*combination))
    except RecipeError as refusal:
        # The one refusal among defaults: SPG with the KL that GRPO has by default.
        assert combination[0] == "spg" and "objective.kl" in str(refusal)
        recipe = parse_recipe(wanted(*combination), ["objective.kl=0"])
    policy, responses = random_policy(), rolled[combination[3]]
    policy.model.requires_grad_(True)
    policy.frozen = random_policy(1).model if recipe.objective.kl > 0 else None
    before = [p.detach().clone() for p in policy.trainable().values()]
    optimizer = torch.optim.SGD(policy.trainable().values(), lr=1e-3)
    clock = Clock(policy.device)
    advantage = recipe.credit(REWARD, GROUP)
    found = learn(recipe, policy, optimizer, Accelerator(), responses, advantage, 0, clock)
    assert all(math.isfinite(value) for value in found.values()), found
    assert found["policy/gradient_norm"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.trainable().values(), strict=True))
    # Nothing is scored twice or for nobody: no old policy without a ratio, no reference without a KL.
    estimator, objective = recipe.estimator, recipe.objective
    if not objective.compares and objective.kl == 0:
        assert clock.calls["score"] == 0
    assert clock.calls["update"] <= 2 * len(REWARD) * estimator.views(LENGTH, LENGTH)


def test_an_estimator_without_noise_scores_old_and_reference_once(rolled):
    for kl, calls in ((0.0, 0), (0.1, 1)):
        recipe = parse_recipe(wanted("autoregressive", "group_relative", "grpo", False), [f"objective.kl={kl}"])
        policy = random_policy()
        policy.model.requires_grad_(True)
        policy.frozen = random_policy(1).model
        clock = Clock(policy.device)
        optimizer = torch.optim.SGD(policy.trainable().values(), lr=1e-3)
        learn(recipe, policy, optimizer, Accelerator(), rolled[False], recipe.credit(REWARD, GROUP), 0, clock)
        assert clock.calls["score"] == calls * int(rolled[False].scored.sum())
        assert clock.calls["update"] == 2 * int(rolled[False].scored.sum())


def test_rows_without_advantage_are_neither_scored_nor_updated(rolled):
    recipe = parse_recipe(wanted("one_step", "group_relative", "grpo", False), ["objective.kl=0"])
    policy = random_policy()
    policy.model.requires_grad_(True)
    clock = Clock(policy.device)
    optimizer = torch.optim.SGD(policy.trainable().values(), lr=1e-3)
    reward = torch.tensor([1.0, 0.0, 0.1, 0.0, 0.5, 0.5, 0.5, 0.5])
    learn(recipe, policy, optimizer, Accelerator(), rolled[False], recipe.credit(reward, GROUP), 0, clock)
    assert (clock.calls["score"], clock.calls["update"]) == (4, 8)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["estimator.kind=spg", "estimator.block=6"], "would depend on the reward"),
        (
            [
                "estimator.kind=spg",
                "estimator.block=6",
                "objective.kl=0",
                "credit.kind=exponential",
                "credit.positive=true",
            ],
            "advantages of both signs",
        ),
        (["estimator.kind=spg", "objective.kl=0", "estimator.block=5"], "must divide sampler.length"),
        (["objective.kind=policy_gradient", "objective.kl=0.1"], "grpo, sequence_ratio would have it"),
        (["objective.kind=sequence_ratio", "objective.divergence=k3"], "objective.divergence is 'k3'"),
        (["estimator.levels=antithetic"], "come in pairs"),
        (["training.group=1"], "needs 2 or more"),
    ],
)
def test_impossible_combinations_are_refused_before_anything_loads(overrides, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(wanted("elbo", "group_relative", "grpo", False), overrides)
