"""`stipule variance`: what an ELBO estimate varies by, and what pruning, masks and updates do to it (figure 3)."""

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
from stipule.models.loading import load_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator
from stipule.rollouts.pregenerate import pregenerate
from stipule.rollouts.pruning import FixedCutoff, Pruning, SpatialPruning
from stipule.rollouts.reward_batch import compute_rewards
from stipule.tasks.problem import Problem
from stipule.training.context import RunContext
from stipule.training.loop import train
from stipule.training.rl_step import update_policy
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe
from stipule.types import Rollouts

Progress = Callable[[str], None]
TRIES = 16  # steps' worth of problems looked through for one whose rewards differ
PAPER = Pruning(spatial=SpatialPruning(ratio=0.05), temporal=FixedCutoff(cutoff=0.05))  # section 5.2


def variance_study(
    recipe: Recipe, responses: int, draws: int, steps: int, out: Path, progress: Progress
) -> dict[str, Any]:
    """All measurements as plain data. An unpruned recipe is compared with the paper's pruning.

    Raises RecipeError, before a model loads, for numbers that cannot give a variance.
    """
    if responses < 2 or draws < 8:
        raise RecipeError(
            f"--responses is {responses} and --draws {draws}; an interval needs 2 responses or more and a variance "
            "8 draws or more; try --responses 32 --draws 128"
        )
    if recipe.pruning.spatial.ratio == 0:
        recipe = replace(recipe, pruning=PAPER)
    seed = recipe.training.seed
    progress("rollouts, standard and pruned")
    policy = load_policy(recipe.model, seed=seed)
    standard = rollouts(replace(recipe, pruning=Pruning()), policy, responses)
    pruned = rollouts(recipe, policy, responses)
    form = recipe.estimator if isinstance(recipe.estimator, Elbo) else Elbo()
    progress("rollouts x masks")
    cells = variance_by_masks(policy, standard, pruned, form, draws, seed)
    progress("forms of the ELBO")
    return {
        "pruning": {"gamma": recipe.pruning.spatial.ratio, "keep": recipe.pruning.spatial.keep}
        | {"cutoff": recipe.pruning.temporal.cutoff, "anchors": float((~pruned.sampled_mask).sum(1).float().mean())},
        "estimator": asdict(replace(form, num_samples=1, timestep_sampling="independent", subsets="independent")),
        "responses": responses,
        "draws": draws,
        "crossing": cells,
        "forms": variance_by_estimator(policy, standard, draws, seed),
        "split": variance_splits(policy, standard, draws, seed),
        "differences": differences(recipe, responses, draws, progress),
        "curves": curves(recipe, steps, out, progress) if steps else {},
    }


def rollouts(recipe: Recipe, policy: MaskedPolicy, count: int) -> Rollouts:
    """A response to each of the first training problems, pruned as the recipe says; always the same noise."""
    return _rolled(recipe, policy, recipe.task.problems("train")[:count], 1)


def _rolled(recipe: Recipe, policy: MaskedPolicy, problems: Sequence[Problem], group: int) -> Rollouts:
    sampler, settings, pruning = recipe.sampler, recipe.training, recipe.pruning
    noise = sampler.sample_noise(len(problems) * group, make_generator(settings.seed, 0, "variance/sample"))
    anchors = None
    if pruning.spatial.ratio > 0:
        store = pregenerate(policy, recipe.task, problems, sampler, settings.seed, settings.rollout_batch_size)
        chosen = torch.rand(
            len(problems), sampler.gen_length, generator=make_generator(settings.seed, 0, "variance/anchors")
        )
        anchors = store.select([p.key for p in problems], group, pruning.spatial, chosen)
    prompts = policy.encode([p.messages for p in problems]).repeat(group)
    return sampler(policy, prompts, noise, anchors, pruning.temporal)


def variance_by_masks(
    policy: MaskedPolicy, standard: Rollouts, pruned: Rollouts, form: Elbo, draws: int, seed: int
) -> list[dict[str, Any]]:
    """Single-draw variance of standard and pruned rollouts under standard masks and masks that spare S_fixed."""
    cells = {
        ("standard", "standard"): standard,
        ("standard", "pruned"): with_sampled_mask(standard, pruned.sampled_mask),
        ("pruned", "standard"): with_sampled_mask(pruned, torch.ones_like(pruned.sampled_mask)),
        ("pruned", "pruned"): pruned,
    }
    single = replace(form, num_samples=1, timestep_sampling="independent", subsets="independent")
    rows = []
    base = base_each = torch.zeros(0)
    for (rolled_as, masked_as), rolled in cells.items():
        values = variances(policy, rolled, single, draws, make_generator(seed, 0, "variance/draws"))
        each = per_token(values, rolled)
        if not len(base):
            base, base_each = values, each
        rows.append(
            {
                "rollouts": rolled_as,
                "masks": masked_as,
                "tokens": float(rolled.loss_mask.sum(1).float().mean()),
                "sum": asdict(summary(values)),
                "per_token": asdict(summary(each)),
                "ratio": ratio_interval(values, base),
                "ratio_per_token": ratio_interval(each, base_each),
                "values": each.tolist(),
            }
        )
    return rows


def variance_by_estimator(
    policy: MaskedPolicy, rolled: Rollouts, draws: int, seed: int, only: str | None = None
) -> list[dict[str, Any]]:
    """Variance of every form (or of one) at 1 to 4 model calls per estimate, against the paper's at the same number."""
    found: dict[tuple[str, int], Tensor] = {}
    paper = next(iter(ESTIMATORS))
    for name, form in ESTIMATORS.items():
        if only not in (None, name) and name != paper:
            continue
        alone = form.timestep_sampling == "independent" and form.subsets == "independent"
        for calls in (1,) if alone else (2, 3, 4):
            fitted = with_calls(form, calls)
            if fitted is not None:
                found[name, calls] = variances(
                    policy, rolled, fitted, draws, make_generator(seed, calls, "variance/forms")
                )
        if alone:  # n independent draws have a variance of one draw's n-th part
            found |= {(name, calls): found[name, 1] / calls for calls in (2, 3, 4)}
    return [
        {
            "form": name,
            "calls": calls,
            "sum": asdict(summary(values)),
            "ratio": ratio_interval(values, found[paper, calls]),
        }
        for (name, calls), values in found.items()
    ]


def variance_splits(policy: MaskedPolicy, rolled: Rollouts, draws: int, seed: int) -> list[dict[str, Any]]:
    """The two parts of eq. 14 of a single draw, averaged over the responses: 4 masks at each of draws / 4 levels."""
    rows = []
    for name in ("1/t, as in the paper", "1/t, t >= 0.15", "Rao-Blackwell", "exact count", "fitted"):
        found = split_variance(
            policy, rolled, ESTIMATORS[name], max(2, draws // 4), 4, make_generator(seed, 0, "variance/split")
        )
        time, noise = (summary(torch.tensor([getattr(s, part) for s in found])) for part in ("time", "noise"))
        rows.append({"form": name, "time": asdict(time), "noise": asdict(noise)})
    return rows


def differences(recipe: Recipe, count: int, draws: int, progress: Progress) -> list[dict[str, Any]]:
    """V[B_new - B_old] per token after 1 .. mu updates, with shared masks and with masks of their own."""
    rows = []
    for name, pruning in (("standard", Pruning()), ("pruned", recipe.pruning)):
        progress(f"differences after updates, {name}")
        found = after_updates(replace(recipe, pruning=pruning), count, draws)
        rows += [{"rollouts": name, "updates": index + 1, **row} for index, row in enumerate(found)]
    return rows


def after_updates(recipe: Recipe, count: int, draws: int) -> list[dict[str, Any]]:
    """Takes an RL step and measures after each of its inner updates, on responses it learns from.

    The step is the first, in the order of the training problems, in which the rewards of a group differ.
    """
    form = recipe.estimator if isinstance(recipe.estimator, Elbo) else Elbo()
    settings = recipe.training
    policy = load_policy(recipe.model, reference=recipe.objective.beta > 0 and recipe.model.lora is None, seed=0)
    if recipe.model.lora is None:
        policy.model.requires_grad_(True)
    problems = recipe.task.problems("train")
    for start in range(0, min(len(problems), TRIES * settings.prompts_per_step), settings.prompts_per_step):
        asked = problems[start : start + settings.prompts_per_step]
        rolled = _rolled(recipe, policy, asked, settings.num_generations)
        repeated = [p for p in asked for _ in range(settings.num_generations)]
        graded = compute_rewards(recipe.task, repeated, policy.decode(rolled.completion_ids))
        advantage = recipe.advantage(graded.rewards, settings.num_generations).to(policy.device)
        taught = (advantage != 0).nonzero()[:, 0]
        if len(taught):
            break
    else:
        return []
    looked = rolled[taught[:count]]
    views = form.sample_masks(looked, draws, make_generator(settings.seed, 0, "variance/difference"))
    others = form.sample_masks(looked, draws, make_generator(settings.seed, 1, "variance/difference"))
    shared, own = estimates(policy, looked, views, form), estimates(policy, looked, others, form)
    rows: list[dict[str, Any]] = []

    def look() -> None:
        new = estimates(policy, looked, views, form)
        spread = [per_token((new - old).var(0, correction=1), looked) for old in (shared, own)]
        rows.append({"shared": asdict(summary(spread[0])), "own": asdict(summary(spread[1]))})

    optimizer = torch.optim.AdamW(policy.trainable_parameters().values(), lr=recipe.optimizer.learning_rate)
    run = RunContext.single_process(recipe, policy, optimizer)
    update_policy(run, rolled, advantage, 0, after_update=look)
    return rows


def curves(recipe: Recipe, steps: int, out: Path, progress: Progress) -> dict[str, Any]:
    """The logged variance over training steps, without and with pruning (figure 3a). The runs stay in `out`."""
    found = {}
    for name, pruning in (("standard", Pruning()), ("pruned", recipe.pruning)):
        training = replace(recipe.training, steps=steps, save_every=steps, evaluate_every=0)
        mine = replace(recipe, pruning=pruning, training=training)
        folder = RunFolder.create(out / name, dump_recipe(mine))
        progress(f"training, {name} rollouts, {steps} steps")
        train(mine, folder)
        lines = folder.read_metrics()
        key = "variance/estimate" if any("variance/estimate" in line for line in lines) else "variance/per_sample"
        found[name] = [[line["step"], line[key]] for line in lines if key in line]
    return found
