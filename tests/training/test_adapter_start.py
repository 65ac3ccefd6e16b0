"""A run that starts from an adapter trains the adapter only, and its checkpoints name the adapter's base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stipule.config.recipe import dump_recipe
from stipule.errors import RecipeError
from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.training.test_distributed import base, recipe, rewards_that_differ_in_some_groups, weights

__all__ = ["base", "rewards_that_differ_in_some_groups"]  # fixtures
SETTINGS = ("objective.beta=0", "training.steps=2", "training.save_every=1", "training.evaluate_every=0")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    policy = load_policy(ModelConfig(path=str(base), lora=LoRA(rank=2, alpha=4)))
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)
    save_policy(policy, tmp_path / "adapter", str(base))
    return tmp_path / "adapter"


def test_only_the_adapter_is_trained_and_the_run_resumes_exactly(base: Path, adapter: Path, tmp_path: Path) -> None:
    wanted = recipe(adapter, *SETTINGS)
    train(wanted, RunFolder.create(tmp_path / "whole", dump_recipe(wanted)))
    half = recipe(adapter, *SETTINGS, "training.steps=1")
    train(half, RunFolder.create(tmp_path / "resumed", dump_recipe(half)))
    train(wanted, RunFolder.reopen(tmp_path / "resumed", dump_recipe(wanted)))
    saved = [weights(tmp_path / name / "checkpoints" / "step-000002" / "model") for name in ("whole", "resumed")]
    assert saved[0].keys() == saved[1].keys() == weights(adapter).keys()
    assert all(torch.equal(saved[0][key], saved[1][key]) for key in saved[0])
    assert any(not torch.equal(saved[0][key], tensor) for key, tensor in weights(adapter).items())
    options = tmp_path / "whole" / "checkpoints" / "step-000002" / "model" / "adapter_config.json"
    assert json.loads(options.read_text())["base_model_name_or_path"] == str(base)
    load_policy(ModelConfig(path=str(tmp_path / "whole")))  # its fingerprint of the base is right


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.beta=0.04"], "objective.beta is 0.04 and model.path is an adapter.*--merge"),
        (["model.lora.rank=8"], "model.lora.rank is 8, but model.path is an adapter of rank 2"),
    ],
)
def test_what_an_adapter_cannot_be_is_refused(adapter: Path, tmp_path: Path, overrides: list, message: str) -> None:
    wanted = recipe(adapter, *SETTINGS, *overrides)
    with pytest.raises(RecipeError, match=message):
        train(wanted, RunFolder.create(tmp_path / "run", dump_recipe(wanted)))
