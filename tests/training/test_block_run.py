"""A run on a block diffusion model with both kinds of pruning and the exact cache: it learns, and it continues."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.training.cost import max_step_cost
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.models import published

STEPS = 12
TASK = {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]}


def recipe_of(path: Path, *overrides: str):
    """Rewards the number of signs in the response, which a model of random weights can learn at once."""
    recipe = parse_recipe(
        {
            "task": {**TASK, "train_problems": 8, "test_problems": 8},
            "model": {"path": str(path)},
            "sampler": {
                "gen_length": 8, "steps": 8, "block_length": 4, "block_schedule": "separate", "temperature": 1.0,
                "stop_at_eos": False, "cache": {"kind": "finished_blocks"},
            },
            "pruning": {
                "spatial": {"ratio": 0.25, "source": "previous_epoch"}, "temporal": {"cutoff": 0.25, "tail": "sample"},
            },
            "estimator": {"masks": "exact", "num_samples": 2, "timestep_sampling": "antithetic", "subsets": "cyclic"},
            "optimizer": {"learning_rate": 5e-3},
            "training": {
                "steps": STEPS, "prompts_per_step": 4, "num_generations": 8, "num_iterations": 2, "save_every": 4,
            },
        },
        overrides,
    )  # fmt: skip
    grade = recipe.task.grade
    object.__setattr__(
        recipe.task, "grade", lambda problem, text: replace(grade(problem, text), reward=float(text.count("+")))
    )
    return recipe


def metrics_of(folder: Path):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "sdar"
    published.write("sdar", folder)
    return folder


def test_a_run_learns_and_its_rollouts_cost_what_is_planned(base, tmp_path):
    recipe = recipe_of(base)
    train(recipe, RunFolder.create(tmp_path / "run", dump_recipe(recipe)))
    metrics = metrics_of(tmp_path / "run")
    rewards = torch.tensor([line["reward/mean"] for line in metrics if "reward/mean" in line])
    assert len(rewards) == STEPS
    assert rewards[-3:].mean() > rewards[:3].mean() + 1
    assert all(0 < line["nfe/rollout"] <= max_step_cost(recipe).rollout for line in metrics if "nfe/rollout" in line)


def test_the_cache_changes_no_step_of_a_run(base, tmp_path):
    norms = {}
    for override in ("training.steps=3", "sampler.cache=null", "training.seed=1"):
        recipe = recipe_of(base, "training.steps=3", override)
        train(recipe, RunFolder.create(tmp_path / override, dump_recipe(recipe)))
        norms[override] = [line["policy/grad_norm"] for line in metrics_of(tmp_path / override)]
    cached, plain, other = norms.values()
    assert plain == pytest.approx(cached, rel=1e-3)
    assert other != pytest.approx(cached, rel=0.1)
