"""Every recipe for LLaDA-8B fits into the memory that it names, as far as `stipule plan` can say."""

from dataclasses import asdict

import pytest

from stipule.plan.devices import GB
from stipule.plan.memory_budget import needed_memory
from stipule.plan.memory_simulation import simulate_memory
from stipule.plan.shape import published_config
from stipule.config.recipe import load_recipe, recipe_folder


def holding(path):
    """The recipe, and what its memory depends on."""
    recipe = load_recipe(str(path))
    training, sampler = recipe.training, recipe.sampler
    key = (asdict(recipe.model), asdict(sampler), recipe.estimator.num_masks(sampler.gen_length, sampler.steps))
    return recipe, f"{key} {training.rollout_batch_size} {training.micro_batch_size} {recipe.objective.beta > 0}"


@pytest.mark.slow
def test_every_recipe_for_llada_8b_fits():
    budgets = {"24gb": 24 * GB, "141gb": 141 * GB}
    seen, tried = set(), 0
    for folder in ("llada-8b", "paper"):
        for path in sorted((recipe_folder() / folder).glob("*.yaml")):
            recipe, key = holding(path)
            if key in seen:
                continue
            seen.add(key)
            budget = budgets.get(path.stem.rsplit("_", 1)[-1], 80 * GB)
            published, _ = published_config(recipe.model.path)
            found = needed_memory(
                simulate_memory(recipe, published, 200, padded=True, accelerator=True), accelerator=True
            )
            print(f"{path.name}: {found / 2**30:.1f} of {budget / 2**30:.1f} GiB")
            assert found <= budget, path
            tried += 1
    assert tried >= 6
