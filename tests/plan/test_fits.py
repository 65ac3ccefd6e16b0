"""Every recipe for LLaDA-8B fits into the memory that it names, as far as `stipule plan` can say."""

from dataclasses import asdict, dataclass, fields, replace

import pytest

from stipule.models.loading import ModelChoice
from stipule.plan.devices import GB
from stipule.plan.memory import needed
from stipule.plan.rehearsal import rehearse
from stipule.plan.shape import published_config
from stipule.recipe import parse_recipe, read_yaml, recipe_folder


@dataclass(frozen=True, kw_only=True)
class Held(ModelChoice):
    """What makes a model fit, whether its loader has it yet or not."""

    checkpointing: bool = False
    quantize: str | None = None


def holding(path):
    """The recipe, and what its memory depends on."""
    data = read_yaml(path)
    wanted = {k: data["model"].pop(k) for k in ("quantize", "checkpointing") if k in data["model"]}
    recipe = parse_recipe(data)
    choice = {f.name: getattr(recipe.model, f.name) for f in fields(recipe.model)}
    recipe = replace(recipe, model=Held(**{**choice, **wanted}))
    training, sampler = recipe.training, recipe.sampler
    key = (asdict(recipe.model), asdict(sampler), recipe.estimator.views(sampler.length, sampler.steps))
    return recipe, f"{key} {training.rollout_rows} {training.score_rows} {recipe.objective.kl > 0}"


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
            found = needed(rehearse(recipe, published, 200, padded=True, accelerator=True), accelerator=True)
            print(f"{path.name}: {found / 2**30:.1f} of {budget / 2**30:.1f} GiB")
            assert found <= budget, path
            tried += 1
    assert tried >= 6
