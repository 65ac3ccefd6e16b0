"""`stipule variance`: measures the variance of ELBO estimates under pruning, masks and updates (figure 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stipule.config.recipe import dump_recipe
from stipule.errors import RecipeError
from stipule.estimators.elbo import Elbo
from stipule.evaluation.elbo_variance import (
    ESTIMATORS,
    estimates,
    per_token,
    ratio_interval,
    split_variance,
    summary,
    variances,
    with_calls,
    with_sampled_mask,
)
from stipule.models.loading import best_device, load_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.object_import import settings_of
from stipule.rng import make_generator
from stipule.rollouts.pregenerate import pregenerate
from stipule.rollouts.pruning import ConfidenceCutoff, FixedCutoff, Pruning, SpatialPruning
from stipule.rollouts.reward_batch import grade_responses
from stipule.tasks.problem import Problem
from stipule.training.context import RunContext
from stipule.training.loop import train
from stipule.training.rl_step import update_policy
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe
from stipule.types import Rollouts

Progress = Callable[[str], None]
MAX_STEPS = 16  # RL steps in which a group with different rewards is searched
PAPER = Pruning(spatial=SpatialPruning(ratio=0.05), temporal=FixedCutoff(cutoff=0.05))  # section 5.2


def variance_study(
    recipe: Recipe, num_responses: int, draws: int, steps: int, out: Path, progress: Progress
) -> dict[str, Any]:
    """All measurements as plain data. An unpruned recipe is compared with the paper's pruning.

    Raises RecipeError, before a model loads, if there are too few responses or draws for a variance.
    """
    if num_responses < 2 or draws < 8:
        raise RecipeError(
            f"--responses is {num_responses} and --draws {draws}; an interval needs 2 responses or more and a variance "
            "8 draws or more; try --responses 32 --draws 128"
        )
    if recipe.pruning.spatial.ratio == 0:
        recipe = replace(recipe, pruning=PAPER)
    seed = recipe.training.seed
    progress("rollouts, standard and pruned")
    policy = load_policy(recipe.model, device=best_device(), seed=seed)
    standard = rollouts(replace(recipe, pruning=Pruning()), policy, num_responses)
    pruned = rollouts(recipe, policy, num_responses)
    estimator = recipe.estimator if isinstance(recipe.estimator, Elbo) else Elbo()
    progress("rollouts x masks")
    crossing = variance_by_masks(policy, standard, pruned, estimator, draws, seed)
    progress("forms of the ELBO")
    spatial, temporal = recipe.pruning.spatial, recipe.pruning.temporal
    cutoff = temporal.cutoff if isinstance(temporal, FixedCutoff | ConfidenceCutoff) else None
    return {
        "pruning": {
            "gamma": spatial.ratio,
            "keep": settings_of(spatial.keep),
            "cutoff": temporal.planned_cutoff.fraction if cutoff is None else cutoff,
            "anchors": float((~pruned.sampled_mask).sum(1).float().mean()),
        },
        "estimator": asdict(_single_sample(estimator)),
        "responses": num_responses,
        "draws": draws,
        "crossing": crossing,
        "forms": variance_by_estimator(policy, standard, draws, seed),
        "split": variance_splits(policy, standard, draws, seed),
        "differences": differences(recipe, num_responses, draws, progress),
        "curves": curves(recipe, steps, out, progress) if steps else {},
    }


def rollouts(recipe: Recipe, policy: MaskedPolicy, num_responses: int) -> Rollouts:
    """One response to each of the first training problems, pruned as in the recipe. The noise is always the same."""
    return _sample(recipe, policy, recipe.task.problems("train")[:num_responses], 1)


def _sample(recipe: Recipe, policy: MaskedPolicy, problems: Sequence[Problem], num_generations: int) -> Rollouts:
    sampler, settings, pruning = recipe.sampler, recipe.training, recipe.pruning
    noise = sampler.sample_noise(len(problems) * num_generations, make_generator(settings.seed, 0, "variance/sample"))
    anchors = None
    if pruning.spatial.ratio > 0:
        store = pregenerate(policy, recipe.task, problems, sampler, settings.seed, settings.rollout_batch_size)
        anchor_noise = torch.rand(
            len(problems), sampler.gen_length, generator=make_generator(settings.seed, 0, "variance/anchors")
        )
        anchors = store.select([p.key for p in problems], num_generations, pruning.spatial, anchor_noise)
    prompts = policy.encode([p.messages for p in problems]).repeat(num_generations)
    return sampler(policy, prompts, noise, anchors, pruning.temporal)


def _single_sample(estimator: Elbo) -> Elbo:
    return replace(estimator, num_samples=1, timestep_sampling="independent", subsets="independent")


def variance_by_masks(
    policy: MaskedPolicy, standard: Rollouts, pruned: Rollouts, estimator: Elbo, draws: int, seed: int
) -> list[dict[str, Any]]:
    """Single-draw variance of standard and pruned rollouts, with standard masks and masks that exclude S_fixed."""
    cases = {
        ("standard", "standard"): standard,
        ("standard", "pruned"): with_sampled_mask(standard, pruned.sampled_mask),
        ("pruned", "standard"): with_sampled_mask(pruned, torch.ones_like(pruned.sampled_mask)),
        ("pruned", "pruned"): pruned,
    }
    single = _single_sample(estimator)
    rows = []
    base = base_per_token = torch.zeros(0)
    for (rollouts_kind, masks_kind), batch in cases.items():
        values = variances(policy, batch, single, draws, make_generator(seed, 0, "variance/draws"))
        values_per_token = per_token(values, batch)
        if not len(base):
            base, base_per_token = values, values_per_token
        rows.append(
            {
                "rollouts": rollouts_kind,
                "masks": masks_kind,
                "tokens": float(batch.loss_mask.sum(1).float().mean()),
                "sum": asdict(summary(values)),
                "per_token": asdict(summary(values_per_token)),
                "ratio": ratio_interval(values, base),
                "ratio_per_token": ratio_interval(values_per_token, base_per_token),
                "values": values_per_token.tolist(),
            }
        )
    return rows


def variance_by_estimator(
    policy: MaskedPolicy, standard: Rollouts, draws: int, seed: int, only: str | None = None
) -> list[dict[str, Any]]:
    """Variance of every estimator (or one) at 1 to 4 model calls, relative to the paper's at the same number."""
    results: dict[tuple[str, int], Tensor] = {}
    paper = next(iter(ESTIMATORS))
    for name, estimator in ESTIMATORS.items():
        if only not in (None, name) and name != paper:
            continue
        is_independent = estimator.timestep_sampling == "independent" and estimator.subsets == "independent"
        for calls in (1,) if is_independent else (2, 3, 4):
            sized = with_calls(estimator, calls)
            if sized is not None:
                generator = make_generator(seed, calls, "variance/forms")
                results[name, calls] = variances(policy, standard, sized, draws, generator)
        if is_independent:  # n independent samples have 1/n of the variance of one sample
            results |= {(name, calls): results[name, 1] / calls for calls in (2, 3, 4)}
    return [
        {
            "form": name,
            "calls": calls,
            "sum": asdict(summary(values)),
            "ratio": ratio_interval(values, results[paper, calls]),
        }
        for (name, calls), values in results.items()
    ]


def variance_splits(policy: MaskedPolicy, standard: Rollouts, draws: int, seed: int) -> list[dict[str, Any]]:
    """The two terms of eq. 14 for one sample, averaged over responses: 4 masks at each of draws / 4 mask ratios."""
    rows = []
    for name in ("1/t, as in the paper", "1/t, t >= 0.15", "Rao-Blackwell", "exact count", "fitted"):
        generator = make_generator(seed, 0, "variance/split")
        splits = split_variance(policy, standard, ESTIMATORS[name], max(2, draws // 4), 4, generator)
        time, noise = (summary(torch.tensor([getattr(s, term) for s in splits])) for term in ("time", "noise"))
        rows.append({"form": name, "time": asdict(time), "noise": asdict(noise)})
    return rows


def differences(recipe: Recipe, num_responses: int, draws: int, progress: Progress) -> list[dict[str, Any]]:
    """V[B_new - B_old] per token after 1 .. mu updates, with shared and with independent masks."""
    rows = []
    for name, pruning in (("standard", Pruning()), ("pruned", recipe.pruning)):
        progress(f"differences after updates, {name}")
        updates = after_updates(replace(recipe, pruning=pruning), num_responses, draws)
        rows += [{"rollouts": name, "updates": index + 1, **row} for index, row in enumerate(updates)]
    return rows


def after_updates(recipe: Recipe, num_responses: int, draws: int) -> list[dict[str, Any]]:
    """Takes one RL step and measures after each inner update, on responses with a nonzero advantage.

    The step is the first, in the order of the training problems, in which the rewards of a group differ.
    """
    estimator = recipe.estimator if isinstance(recipe.estimator, Elbo) else Elbo()
    settings = recipe.training
    needs_reference = recipe.objective.beta > 0 and recipe.model.lora is None
    policy = load_policy(recipe.model, reference=needs_reference, device=best_device(), seed=0)
    if recipe.model.lora is None:
        policy.model.requires_grad_(True)
    problems = recipe.task.problems("train")
    for start in range(0, min(len(problems), MAX_STEPS * settings.prompts_per_step), settings.prompts_per_step):
        step_problems = problems[start : start + settings.prompts_per_step]
        batch = _sample(recipe, policy, step_problems, settings.num_generations)
        rewards = grade_responses(policy, recipe.task, step_problems, batch)
        advantages = recipe.advantage(rewards.rewards, settings.num_generations).to(policy.device)
        nonzero = (advantages != 0).nonzero()[:, 0]
        if len(nonzero):
            break
    else:
        return []
    measured = batch[nonzero[:num_responses]]
    masks = estimator.sample_masks(measured, draws, make_generator(settings.seed, 0, "variance/difference"))
    other_masks = estimator.sample_masks(measured, draws, make_generator(settings.seed, 1, "variance/difference"))
    old_shared = estimates(policy, measured, masks, estimator)
    old_own = estimates(policy, measured, other_masks, estimator)
    rows: list[dict[str, Any]] = []

    def measure() -> None:
        new = estimates(policy, measured, masks, estimator)
        shared, own = (per_token((new - old).var(0, correction=1), measured) for old in (old_shared, old_own))
        rows.append({"shared": asdict(summary(shared)), "own": asdict(summary(own))})

    optimizer = torch.optim.AdamW(policy.trainable_parameters().values(), lr=recipe.optimizer.learning_rate)
    run = RunContext.single_process(recipe, policy, optimizer)
    update_policy(run, batch, advantages, 0, after_update=measure)
    return rows


def curves(recipe: Recipe, steps: int, out: Path, progress: Progress) -> dict[str, Any]:
    """The logged variance over training steps, without and with pruning (figure 3a). The run folders stay in `out`."""
    points = {}
    for name, pruning in (("standard", Pruning()), ("pruned", recipe.pruning)):
        training = replace(recipe.training, steps=steps, save_every=steps, evaluate_every=0)
        run_recipe = replace(recipe, pruning=pruning, training=training)
        folder = RunFolder.create(out / name, dump_recipe(run_recipe))
        progress(f"training, {name} rollouts, {steps} steps")
        train(run_recipe, folder)
        lines = folder.read_metrics()
        key = "variance/estimate" if any("variance/estimate" in line for line in lines) else "variance/per_sample"
        points[name] = [[line["step"], line[key]] for line in lines if key in line]
    return points
