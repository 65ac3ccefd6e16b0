"""Every family: its published layout is loaded, trained and saved again, and all checks pass."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.models.checks import run_checks
from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.models import published

FAMILIES = pytest.mark.parametrize("name", (*published.NAMES, *published.BLOCK_NAMES))
TASK = {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]}
PROMPTS = ["3,7,12=33", "1,2=3", "20,20,20=60"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """For each family: the folder of a checkpoint, its tensors and its configuration."""
    root = tmp_path_factory.mktemp("published")
    return {
        name: (root / name, *published.write(name, root / name)) for name in (*published.NAMES, *published.BLOCK_NAMES)
    }


def load(checkpoints, name, lora=None):
    return load_policy(ModelConfig(path=str(checkpoints[name][0]), lora=lora, **published.settings(name)), seed=1)


def logits(policy, seed=0):
    """The logits of every real token of a padded batch."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(4, policy.vocab_size, (2, 9), generator=generator)
    attention_mask = torch.arange(9)[None] >= torch.tensor([[0], [3]])
    with torch.no_grad():
        return policy.logits(input_ids, attention_mask, attention_mask)


def blocks(name):
    """The sampler's settings for a block model."""
    return {"block_schedule": "separate"} if name in published.BLOCK_NAMES else {}


@pytest.mark.parametrize("name", published.NAMES)  # for block models: test_block_attention.py
def test_logits_are_those_of_the_stock_class_shifted_if_the_family_is(checkpoints, name):
    policy = load(checkpoints, name)
    input_ids = torch.randint(4, policy.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    every = torch.ones_like(input_ids, dtype=torch.bool)
    first = 1 if name == "roberta" else 0  # RoBERTa's position ids start at the padding id + 1
    with torch.no_grad():
        position_ids = torch.arange(9).expand(2, 9) + first
        expected = policy.unwrapped_model(input_ids=input_ids, position_ids=position_ids).logits
        if name in published.SHIFTED:
            expected = torch.cat([expected[:, :1], expected[:, :-1]], 1)
        logits = policy.logits(input_ids, None, every)
    assert logits.std() > 0.5
    assert torch.allclose(logits, expected.flatten(0, 1), atol=1e-5)


@FAMILIES
def test_padding_changes_no_logit_of_a_real_token(checkpoints, name):
    policy = load(checkpoints, name)
    input_ids = torch.randint(4, policy.vocab_size, (1, 6), generator=torch.Generator().manual_seed(0))
    every = torch.ones_like(input_ids, dtype=torch.bool)
    padded = torch.cat([torch.full((1, 3), policy.pad_id), input_ids], 1)
    attention_mask = torch.arange(9)[None] >= 3
    with torch.no_grad():
        padded_logits = policy.logits(padded, attention_mask, attention_mask)
        assert (padded_logits - policy.logits(input_ids, None, every)).abs().max() <= 1e-4


@FAMILIES
def test_a_saved_model_has_the_published_tensors_and_config(checkpoints, name, tmp_path):
    _, tensors, config = checkpoints[name]
    policy = load(checkpoints, name)
    save_policy(policy, tmp_path / "saved", "x")
    saved_tensors = load_file(tmp_path / "saved" / "model.safetensors")
    saved_config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {key: saved_config[key] for key in config} == config
    if policy.family.name != "masked_lm":  # these are saved under current names, without unused tensors
        assert {k: v.shape for k, v in saved_tensors.items()} == {k: v.shape for k, v in tensors.items()}
        assert all(torch.equal(saved_tensors[key], tensors[key]) for key in tensors)
    # The saved config.json contains the recipe's settings of the model, so it is loaded without the recipe.
    reloaded = load_policy(ModelConfig(path=str(tmp_path / "saved")))
    assert reloaded.mask_id == policy.mask_id == (5 if name == "illada" else 1)
    assert (logits(reloaded) - logits(policy)).abs().max() <= 1e-5


@FAMILIES
@pytest.mark.parametrize("lora", [True, False])
def test_it_trains_and_the_trained_model_is_loaded_again(checkpoints, name, lora, tmp_path):
    base = load(checkpoints, name)
    recipe = parse_recipe(
        {
            "task": {**TASK, "train_problems": 8, "test_problems": 8},
            "model": {
                "path": str(checkpoints[name][0]), "lora": {"rank": 2, "alpha": 4} if lora else None,
                **published.settings(name),
            },
            "sampler": {"gen_length": 8, "steps": 4, "block_length": 4, "temperature": 1.0, **blocks(name)},
            "estimator": {"masks": "exact"},
            "optimizer": {"learning_rate": 1e-2},
            "advantage": {"scale_rewards": False},
            "training": {"steps": 1, "prompts_per_step": 1, "num_generations": 4, "num_iterations": 2},
        }
    )  # fmt: skip
    # A random model never solves Countdown, so every response gets another reward.
    object.__setattr__(recipe.task, "grade", _by_length(recipe.task.grade))
    train(recipe, RunFolder.create(tmp_path / "run", dump_recipe(recipe)))
    folder = tmp_path / "run" / "checkpoints" / "step-000001" / "model"
    trained = load_policy(ModelConfig(path=str(folder)))  # the recipe's settings of the model were saved with it
    assert (logits(trained) - logits(base)).abs().max() > 1e-3
    if not lora:
        return
    with trained.reference():
        assert (logits(trained) - logits(base)).abs().max() <= 1e-5
    lm_heads = ("lm_head", "cls.", "head.", "decoder.")
    assert not any(module in name for name in trained.trainable_parameters() for module in lm_heads)
    before = logits(trained)
    rounding = 1e-5 * float(before.abs().max())  # W + BA is rounded again in every matrix
    trained.model = trained.model.merge_and_unload()
    assert (logits(trained) - before).abs().max() <= rounding
    save_policy(trained, tmp_path / "merged", "x")
    merged = load_policy(ModelConfig(path=str(tmp_path / "merged")))
    assert (logits(merged) - before).abs().max() <= rounding
    if trained.family.name != "masked_lm":
        with safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as file:
            assert set(file.keys()) == set(checkpoints[name][1])


def _by_length(grade):
    from dataclasses import replace

    def grade_by_length(problem, response):
        return replace(grade(problem, response), reward=float(len(response)))

    return grade_by_length


@FAMILIES
def test_all_checks_pass(checkpoints, name):
    policy = load(checkpoints, name, LoRA(rank=2, alpha=4))
    sampler = SemiAutoregressiveSampler(gen_length=8, steps=4, block_length=4, temperature=1.0, **blocks(name))
    checks = {check.name: check for check in run_checks(policy, sampler, PROMPTS)}
    failed = {name: check.measured for name, check in checks.items() if check.ok is False}
    assert not failed
    # A random model cannot predict the prompts; the copying models of test_sizes.py can.
    assert {name for name, check in checks.items() if check.ok is None} <= {"alignment"}
