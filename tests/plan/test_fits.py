"""`stipule plan` predicts that every recipe for LLaDA-8B and SDAR fits into the memory of its device."""

from dataclasses import asdict

import pytest

from stipule.config.recipe import load_recipe, recipe_folder
from stipule.plan.devices import GB
from stipule.plan.memory_budget import needed_memory
from stipule.plan.memory_simulation import simulate_memory
from stipule.plan.shape import published_config


def recipe_and_memory_key(path):
    """The recipe, and the settings that its memory depends on."""
    recipe = load_recipe(str(path))
    training, sampler = recipe.training, recipe.sampler
    key = (asdict(recipe.model), asdict(sampler), recipe.estimator.num_masks(sampler.gen_length, sampler.steps))
    return recipe, f"{key} {training.rollout_batch_size} {training.micro_batch_size} {recipe.objective.beta > 0}"


@pytest.mark.slow
def test_every_recipe_for_a_large_model_fits():
    budgets = {"24gb": 24 * GB, "141gb": 141 * GB}
    seen, checked = set(), 0
    for folder in ("llada-8b", "paper", "published", "sdar"):
        for path in sorted((recipe_folder() / folder).glob("*.yaml")):
            recipe, key = recipe_and_memory_key(path)
            if key in seen:
                continue
            seen.add(key)
            budget = budgets.get(path.stem.rsplit("_", 1)[-1], 80 * GB)
            config_json, _ = published_config(recipe.model.path)
            peaks = simulate_memory(recipe, config_json, 200, padded=True, accelerator=True)
            needed = needed_memory(peaks, accelerator=True)
            print(f"{path.name}: {needed / 2**30:.1f} of {budget / 2**30:.1f} GiB")
            assert needed <= budget, path
            checked += 1
    assert checked >= 6
