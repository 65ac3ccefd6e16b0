"""Every family: its published layout in, trained, out again, and the conformance checks on top."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from stipule.models.checks import run_checks
from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.training.run_folder import RunFolder
from stipule.training.loop import train
from tests.models import published

FAMILIES = pytest.mark.parametrize("name", published.NAMES)
TASK = {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]}
PROMPTS = ["3,7,12=33", "1,2=3", "20,20,20=60"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder for each family."""
    root = tmp_path_factory.mktemp("published")
    return {name: (root / name, *published.write(name, root / name)) for name in published.NAMES}


def load(checkpoints, name, lora=None):
    return load_policy(ModelConfig(path=str(checkpoints[name][0]), lora=lora, **published.choice(name)), seed=1)


def logits(policy, seed=0):
    """Of every position of a padded batch."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, policy.vocab_size, (2, 9), generator=generator)
    attend = torch.arange(9)[None] >= torch.tensor([[0], [3]])
    with torch.no_grad():
        return policy.logits(tokens, attend, attend)


@FAMILIES
def test_logits_are_the_stock_classs_own_moved_where_the_family_is_shifted(checkpoints, name):
    policy = load(checkpoints, name)
    tokens = torch.randint(4, policy.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    every = torch.ones_like(tokens, dtype=torch.bool)
    first = 1 if name == "roberta" else 0  # counts from the padding id on
    with torch.no_grad():
        own = policy.unwrapped_model(input_ids=tokens, position_ids=torch.arange(9).expand(2, 9) + first).logits
        if name in published.SHIFTED:
            own = torch.cat([own[:, :1], own[:, :-1]], 1)
        found = policy.logits(tokens, None, every)
    assert found.std() > 0.5
    assert torch.allclose(found, own.flatten(0, 1), atol=1e-5)


@FAMILIES
def test_padding_moves_no_logit_of_any_real_token(checkpoints, name):
    policy = load(checkpoints, name)
    tokens = torch.randint(4, policy.vocab_size, (1, 6), generator=torch.Generator().manual_seed(0))
    every = torch.ones_like(tokens, dtype=torch.bool)
    padded = torch.cat([torch.full((1, 3), policy.pad_id), tokens], 1)
    attend = torch.arange(9)[None] >= 3
    with torch.no_grad():
        assert (policy.logits(padded, attend, attend) - policy.logits(tokens, None, every)).abs().max() <= 1e-4


@FAMILIES
def test_a_saved_model_is_the_published_one_again(checkpoints, name, tmp_path):
    _, tensors, config = checkpoints[name]
    policy = load(checkpoints, name)
    save_policy(policy, tmp_path / "again", "x")
    again = load_file(tmp_path / "again" / "model.safetensors")
    said = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {key: said[key] for key in config} == config
    if policy.family.name != "masked_lm":  # those come back under today's names, without what has no use
        assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in tensors.items()}
        assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    # The recipe's words are in the saved config.json: no recipe is needed any more.
    reloaded = load_policy(ModelConfig(path=str(tmp_path / "again")))
    assert reloaded.mask_id == policy.mask_id == (5 if name == "illada" else 1)
    assert (logits(reloaded) - logits(policy)).abs().max() <= 1e-5


@FAMILIES
@pytest.mark.parametrize("lora", [True, False])
def test_it_trains_and_what_was_trained_is_loaded_again(checkpoints, name, lora, tmp_path):
    base = load(checkpoints, name)
    recipe = parse_recipe(
        {
            "task": {**TASK, "train_problems": 8, "test_problems": 8},
            "model": {
                "path": str(checkpoints[name][0]), "lora": {"rank": 2, "alpha": 4} if lora else None,
                **published.choice(name),
            },
            "sampler": {"gen_length": 8, "steps": 4, "block_length": 4, "temperature": 1.0},
            "estimator": {"masks": "exact"},
            "optimizer": {"learning_rate": 1e-2},
            "credit": {"scale": False},
            "training": {"steps": 1, "prompts_per_step": 1, "num_generations": 4, "num_iterations": 2},
        }
    )  # fmt: skip
    # Random models never solve Countdown: give every response a reward of its own.
    object.__setattr__(recipe.task, "grade", _by_length(recipe.task.grade))
    train(recipe, RunFolder.create(tmp_path / "run", dump_recipe(recipe)))
    place = tmp_path / "run" / "checkpoints" / "step-000001" / "model"
    trained = load_policy(ModelConfig(path=str(place)))  # what the recipe said of the model was saved with it
    assert (logits(trained) - logits(base)).abs().max() > 1e-3
    if not lora:
        return
    with trained.reference():
        assert (logits(trained) - logits(base)).abs().max() <= 1e-5
    assert not any(
        part in n for n in trained.trainable_parameters() for part in ("lm_head", "cls.", "head.", "decoder.")
    )
    before = logits(trained)
    rounding = 1e-5 * float(before.abs().max())  # W + BA is rounded once more, in every matrix
    trained.model = trained.model.merge_and_unload()
    assert (logits(trained) - before).abs().max() <= rounding
    save_policy(trained, tmp_path / "merged", "x")
    alone = load_policy(ModelConfig(path=str(tmp_path / "merged")))
    assert (logits(alone) - before).abs().max() <= rounding
    if trained.family.name != "masked_lm":
        with safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as file:
            assert set(file.keys()) == set(checkpoints[name][1])


def _by_length(grade):
    from dataclasses import replace

    def graded(problem, response):
        return replace(grade(problem, response), reward=float(len(response)))

    return graded


@FAMILIES
def test_it_conforms(checkpoints, name):
    policy = load(checkpoints, name, LoRA(rank=2, alpha=4))
    sampler = SemiAutoregressiveSampler(gen_length=8, steps=4, block_length=4, temperature=1.0)
    found = {check.name: check for check in run_checks(policy, sampler, PROMPTS)}
    failed = {key: check.measured for key, check in found.items() if check.ok is False}
    assert not failed
    # A random model has nothing to say of the prompts; the copying models below do.
    assert {key for key, check in found.items() if check.ok is None} <= {"alignment"}
