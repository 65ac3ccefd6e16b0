"""A run on a block diffusion model with both kinds of pruning and the exact cache: it learns, and it continues."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.training.cost import max_step_cost
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.models import published
from tests.training.processes import free_port

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


# The bundled block base, on which groups differ


BUNDLED = (
    "task.train_problems=8", "training.prompts_per_step=4", "training.num_generations=4", "training.steps=4",
    "training.save_every=1", "training.evaluate_every=0", "pruning.spatial.source=previous_epoch",
)  # fmt: skip
LORA = "model.lora={rank: 4, alpha: 8, targets: all}"


def weights_of(folder: Path) -> dict[str, bytes]:
    checkpoint = max(folder.glob("checkpoints/step-*"))
    return {path.name: path.read_bytes() for path in sorted(checkpoint.rglob("*.safetensors"))}


def train_from_command(out: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    resume = ["--resume"] if (out / "recipe.yaml").exists() else []
    command = ["train", "tiny/block_grpo_elbo_stp", *BUNDLED, *overrides, "--out", str(out), *resume]
    return subprocess.Popen(
        [sys.executable, "-m", "stipule", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize("overrides", [(), (LORA,)])
def test_a_killed_run_on_a_block_model_resumes_to_the_same_bits(tmp_path, overrides):
    with train_from_command(tmp_path / "whole", *overrides) as process:
        process.communicate(timeout=300)
    assert process.returncode == 0
    out = tmp_path / "killed"
    with train_from_command(out, *overrides) as process:
        deadline = time.monotonic() + 300
        while not list(out.glob("checkpoints/step-000002*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert 1 < len(metrics_of(out)) < 4
    with train_from_command(out, *overrides) as process:
        process.communicate(timeout=300)
    assert process.returncode == 0
    assert weights_of(out) == weights_of(tmp_path / "whole")
    varying = ("time/", "memory/")
    one, other = (
        [{k: v for k, v in line.items() if not k.startswith(varying)} for line in metrics_of(folder)]
        for folder in (out, tmp_path / "whole")
    )
    assert one == other and len(one) == 4
    assert any(line["policy/grad_norm"] > 0 for line in one if "policy/grad_norm" in line)


def launch(out: Path, world_size: int, *overrides: str) -> list[dict]:
    """Trains on this many processes and returns the metrics."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    sizes = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **sizes, **address} for rank in range(world_size)]
    processes = [train_from_command(out, "training.steps=2", *overrides, **rank) for rank in ranks]
    for process in processes:
        with process:
            process.communicate(timeout=300)
        assert process.returncode == 0
    return metrics_of(out)


@pytest.mark.parametrize("overrides", [(), (LORA,)])
def test_two_processes_give_the_run_of_one_on_a_block_model(tmp_path, overrides):
    one, two = (launch(tmp_path / str(size), size, "training.micro_batch_size=4", *overrides) for size in (1, 2))
    assert len(one) == len(two) == 2
    for mine, theirs in zip(one, two, strict=True):
        for key in ("reward/mean", "nfe/rollout", "nfe_tokens/rollout", "nfe_tokens/update", "response/anchors"):
            assert mine[key] == theirs[key], key
        for key in ("policy/loss", "policy/grad_norm", "variance/estimate"):
            if key in mine:
                assert mine[key] == pytest.approx(theirs[key], rel=2e-3, abs=1e-5), key
    assert any("policy/loss" in line for line in one)
