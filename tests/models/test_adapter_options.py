"""Adapters that peft wrote: merged rollouts, scores and the reference are one policy each, or the option is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from stipule.errors import CheckpointError
from stipule.models.loading import ModelConfig, load_policy
from stipule.models.lora_merge import merged_adapters
from tests.models import published

INPUT_IDS = torch.tensor([[4, 5, 1, 6, 1], [7, 1, 8, 9, 4]])
EVERY = torch.ones_like(INPUT_IDS, dtype=torch.bool)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("m") / "llada"
    published.write("llada", path)
    return str(path)


def logits(policy: Any) -> torch.Tensor:
    with torch.no_grad():
        return policy.logits(INPUT_IDS, None, EVERY)


def write_adapter(base: str, folder: Path, **options: Any) -> torch.Tensor:
    """An adapter with random weights, written by peft. Returns the logits of peft's own model."""
    policy = load_policy(ModelConfig(path=base))
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        adapted = get_peft_model(policy.unwrapped_model, config).eval()
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.data += torch.randn(parameter.shape) / 4
        adapted.peft_config["default"].base_model_name_or_path = base
        policy.model = adapted
        expected = logits(policy)
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 16}},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": "all-linear", "lora_dropout": 0.5, "init_lora_weights": "gaussian"},
    ],
)
def test_plain_lora_is_one_policy_in_rollouts_and_scores(base: str, tmp_path: Path, options: dict) -> None:
    expected = write_adapter(base, tmp_path / "adapter", **options)
    policy = load_policy(ModelConfig(path=str(tmp_path / "adapter")))
    assert torch.equal(logits(policy), expected)
    with merged_adapters(policy):
        assert torch.allclose(logits(policy), expected, atol=1e-4)
    unadapted = logits(load_policy(ModelConfig(path=base)))
    assert not torch.allclose(expected, unadapted, atol=1e-2)
    with policy.reference():
        assert torch.equal(logits(policy), unadapted)


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("use_dora", {"use_dora": True}),
        ("lora_bias", {"lora_bias": True}),
        ("bias", {"bias": "all"}),
        ("modules_to_save", {"modules_to_save": ["lm_head"]}),
        ("init_lora_weights", {"init_lora_weights": "pissa"}),
        ("layer_replication", {"layer_replication": [[0, 2], [0, 2]]}),
        ("trainable_token_indices", {"trainable_token_indices": [4]}),
        ("target_modules", {"target_modules": ["lm_head"]}),
        ("target_modules", {"target_modules": ["embed_tokens"]}),
        ("target_parameters", {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused_by_its_option(
    base: str, tmp_path: Path, option: str, options: dict
) -> None:
    write_adapter(base, tmp_path / "adapter", **options)
    with pytest.raises(CheckpointError, match=f"{option}\\b.*merge the adapter with peft"):
        load_policy(ModelConfig(path=str(tmp_path / "adapter")))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("peft_type", "IA3"), ("corda_config", {"a": 1}), ("use_qalora", True), ("alora_invocation_tokens", [1]),
        ("fan_in_fan_out", True), ("revision", "other"), ("an_option_of_a_later_peft", True),
    ],
)  # fmt: skip
def test_an_option_is_refused_before_the_base_is_loaded(tmp_path: Path, option: str, value: Any) -> None:
    options = {"peft_type": "LORA", "base_model_name_or_path": "/no/such/base", option: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match=f"has {option} = "):
        load_policy(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("text", ["{", "[]", '{"peft_type": "LORA"}', '{"base_model_name_or_path": null}'])
def test_a_damaged_adapter_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read.*name its base"):
        load_policy(ModelConfig(path=str(tmp_path)))
