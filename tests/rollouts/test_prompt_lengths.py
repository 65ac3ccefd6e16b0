"""Prompts that are too long for the model are refused before sampling; ids without a token are never sampled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from stipule.config.recipe import load_recipe
from stipule.errors import RecipeError
from stipule.evaluation.evaluate import evaluate
from stipule.models.families import max_positions
from stipule.models.loading import ModelConfig, load_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.pregenerate import pregenerate, store_from_texts
from stipule.rollouts.prompt_lengths import check_prompt_lengths
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Problem
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.models import published

SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=4, block_length=16, temperature=1.0)


@pytest.fixture(scope="module")
def tiny() -> MaskedPolicy:
    return load_policy(ModelConfig(path="tiny/sudoku"))


def problems(task, *lengths: int) -> list[Problem]:
    """Problems whose prompts have this many tokens (one for each digit, two of the template)."""
    example = task.problems("train")[0]
    digits = [("12340" * length)[: length - 2] for length in lengths]
    return [replace(example, key=f"p{length}", prompt=text) for length, text in zip(lengths, digits, strict=True)]


def test_the_longest_prompt_that_fits_runs_and_one_token_more_is_refused(tiny: MaskedPolicy) -> None:
    task = load_recipe("quickstart").task
    fits, too_long = problems(task, 240, 241)
    assert tiny.max_length == 256
    assert tiny.encode([fits.messages]).prompt_ids.shape == (1, 240)
    noise = SAMPLER.sample_noise(1, torch.Generator().manual_seed(0))
    SAMPLER(tiny, tiny.encode([fits.messages]), noise)
    check_prompt_lengths(tiny, [fits], 16)
    message = r"241 tokens and sampler.gen_length is 16, together 257; the model has 256 positions; set .* at most 15"
    with pytest.raises(RecipeError, match="a prompt has " + message):
        SAMPLER(tiny, tiny.encode([too_long.messages]), noise)
    with pytest.raises(RecipeError, match="the prompt of problem 'p241' has " + message):
        check_prompt_lengths(tiny, [fits, too_long], 16)
    with pytest.raises(RecipeError, match="the model has 256 positions; shorten the prompt$"):
        check_prompt_lengths(tiny, problems(task, 300), 16)


def test_nothing_is_sampled_before_all_prompts_were_checked(
    tiny: MaskedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation, anchors and training refuse a long prompt among thousands before the first forward pass."""
    recipe = load_recipe("quickstart", ["training.evaluate_every=1"])
    batch = problems(recipe.task, 20, 30, 250)
    monkeypatch.setattr(MaskedPolicy, "logits", lambda *_: pytest.fail("a forward pass"))
    with pytest.raises(RecipeError, match="'p250'"):
        evaluate(tiny, recipe.task, batch, SAMPLER, batch_size=1)
    with pytest.raises(RecipeError, match="'p250'"):
        pregenerate(tiny, recipe.task, batch, SAMPLER, 0, batch_size=1)
    with pytest.raises(RecipeError, match="'p250'"):
        store_from_texts(tiny, recipe.task, batch, {p.key: "12" for p in batch}, 16, batch_size=1)
    monkeypatch.setattr("stipule.models.loading.check_bidirectional", lambda policy: None)
    usual = recipe.task.problems("test")[:4]
    for too_long in ("train", "test"):
        by_split = {"train": usual, "test": usual, too_long: batch}
        monkeypatch.setattr(type(recipe.task), "problems", lambda task, split, by_split=by_split: by_split[split])
        with pytest.raises(RecipeError, match="'p250'"):
            train(recipe, RunFolder.create(tmp_path / too_long, ""))


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (PreTrainedConfig(), None),
        (
            Qwen2Config(
                max_position_embeddings=32768,
                rope_parameters={
                    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768,
                },
            ),
            131072,
        ),
    ],
)  # fmt: skip
def test_the_longest_sequence_is_the_one_that_the_configuration_states(
    config: PreTrainedConfig, longest: int | None
) -> None:
    assert max_positions(config) == longest


@pytest.mark.parametrize(("name", "longest"), [("bert", 64), ("roberta", 63)])
def test_learned_positions_are_all_that_there_are(tmp_path: Path, name: str, longest: int) -> None:
    published.write(name, tmp_path / name)
    policy = load_policy(ModelConfig(path=str(tmp_path / name)))
    assert policy.max_length == longest
    input_ids = torch.full((1, longest), 5)
    policy.logits(input_ids, None, torch.ones_like(input_ids, dtype=torch.bool))
    with pytest.raises((RuntimeError, IndexError)):
        longer = torch.full((1, longest + 1), 5)
        policy.logits(longer, torch.ones_like(longer, dtype=torch.bool), torch.ones_like(longer, dtype=torch.bool))


def test_ids_without_a_token_are_never_sampled(tmp_path: Path) -> None:
    """The head has 40 rows more than the tokenizer has tokens; at temperature 2 most of the mass is on them."""
    tensors, config = published.write("llada", tmp_path / "m")
    for name in ("model.transformer.wte.weight", "model.transformer.ff_out.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name].repeat(4, 1)[:40] * 3])
    config["embedding_size"] = config["vocab_size"] = len(tensors[name])
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    policy = load_policy(ModelConfig(path=str(tmp_path / "m")))
    known = set(policy.tokenizer.get_vocab().values())
    assert policy.vocab_size == len(known) + 40
    assert set(policy.unsampled_ids.tolist()) == {policy.mask_id} | set(range(policy.vocab_size)) - known
    for temperature in (2.0, 0.0):
        sampler = replace(SAMPLER, temperature=temperature, stop_at_eos=False)
        prompts = policy.encode_raw(["12"]).repeat(64)
        rollouts = sampler(policy, prompts, sampler.sample_noise(64, torch.Generator().manual_seed(0)))
        assert set(rollouts.completion_ids.flatten().tolist()) <= known - {policy.mask_id}
    policy.decode(rollouts.completion_ids)
    missing = max(known) + 1
    assert policy.token_label(missing) == f"<{missing}>"
