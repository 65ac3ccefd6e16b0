"""Models handed on and adapters taken in: what was trained is what plain transformers loads."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from stipule.commands import export as exporting
from stipule.errors import CheckpointError, RecipeError
from stipule.commands.export import convert, export
from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from stipule.config.recipe import dump_recipe, parse_recipe
from tests.models import published

TOKENS = torch.tensor([[4, 5, 1, 6, 1], [7, 1, 8, 9, 4]])
EVERY = torch.ones_like(TOKENS, dtype=torch.bool)
BLOCK = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "attn_out", "gate_proj": "ff_proj"}
BLOCK |= {"up_proj": "up_proj", "down_proj": "ff_out"}


def logits(policy):
    with torch.no_grad():
        return policy.logits(TOKENS, None, EVERY)


@pytest.fixture(params=["llada", "dream", "llada_moe", "bert", "a2d_qwen3"])
def run(request, tmp_path):
    """A run folder with one checkpoint of a stirred adapter, and its policy."""
    name = request.param
    base = tmp_path / name
    published.write(name, base)
    model = {"path": str(base), "lora": {"rank": 2, "alpha": 4}, **published.choice(name)}
    recipe = parse_recipe({"task": {"kind": "countdown"}, "model": model})
    policy = load_policy(recipe.model)
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)
    save_policy(policy, tmp_path / "run" / "checkpoints" / "step-000003" / "model", str(base))
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(recipe))
    line = {"step": 3, "reward/mean": 0.5, "time/total": 1.0}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return name, str(tmp_path / "run"), policy


def test_a_merged_export_says_what_was_trained(run, tmp_path):
    name, folder, policy = run
    said = export(folder, tmp_path / "out", merge=True)
    assert "whole model in float32" in said
    again = load_policy(ModelConfig(path=str(tmp_path / "out")))
    assert (logits(again) - logits(policy)).abs().max() <= 1e-5
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    if name in ("llada", "dream", "llada_moe"):  # the base's own names and fields: its own code would load it
        assert names == set(load_file(tmp_path / name / "model.safetensors"))
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config == json.loads((tmp_path / name / "config.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "reward/mean 0.5" in card and "rank: 2" in card and "held in float32" in card
    with pytest.raises(RecipeError, match="already exists"):
        export(folder, tmp_path / "out", merge=True)


def test_a_stock_export_is_loaded_by_plain_transformers(run, tmp_path):
    name, folder, policy = run
    with pytest.raises(RecipeError, match="add --merge"):
        export(folder, tmp_path / "out", merge=False, layout="stock")
    export(folder, tmp_path / "out", merge=True, layout="stock")
    plain = (AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM).from_pretrained(tmp_path / "out").eval()
    assert type(plain).__module__.startswith("transformers.")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("7*3=21")["input_ids"]
    with torch.no_grad():
        found = plain(input_ids=TOKENS).logits
    if name in published.SHIFTED:
        found = torch.cat([found[:, :1], found[:, :-1]], 1)
    assert (found.flatten(0, 1) - logits(policy)).abs().max() <= 1e-5
    again = load_policy(ModelConfig(path=str(tmp_path / "out")))  # and here, by what its config.json says
    assert (again.mask_id, again.eos_id) == (policy.mask_id, policy.eos_id)
    assert (logits(again) - logits(policy)).abs().max() <= 1e-5


def test_an_adapter_is_exported_beside_its_base(run, tmp_path):
    name, folder, policy = run
    assert "an adapter on" in export(folder, tmp_path / "out", merge=False)
    again = load_policy(ModelConfig(path=str(tmp_path / "out")))
    assert torch.equal(logits(again), logits(policy))
    if name == "dream":  # peft alone finds every key, too
        bare = load_policy(ModelConfig(path=str(tmp_path / name)))
        bare.model = PeftModel.from_pretrained(bare.unwrapped_model, str(tmp_path / "out")).eval()
        assert torch.allclose(logits(bare), logits(policy), atol=1e-6)


def test_a_merge_that_changes_the_model_is_refused(tmp_path, monkeypatch):
    published.write("llada", tmp_path / "llada")
    policy = load_policy(ModelConfig(path=str(tmp_path / "llada"), lora=LoRA(rank=2)))
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)
    save_policy(policy, tmp_path / "adapter", str(tmp_path / "llada"))
    monkeypatch.setattr(exporting, "MERGED", {"float32": -1.0})
    with pytest.raises(CheckpointError, match="merging moves log-probabilities"):
        export(str(tmp_path / "adapter"), tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


def test_pushing_offline_leaves_the_folder_and_says_how(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="is written and whole.*hf upload"):
        exporting.upload(tmp_path / "out", "me/model")


@pytest.fixture
def peer(tmp_path):
    """An adapter as d1's code writes it, its twin under our names, and the base."""
    published.write("llada", tmp_path / "base")
    policy = load_policy(ModelConfig(path=str(tmp_path / "base"), lora=LoRA(rank=2, alpha=4)))
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape) / 20)
    save_policy(policy, tmp_path / "twin", str(tmp_path / "base"))
    tensors = {}
    for key, tensor in load_file(tmp_path / "twin" / "adapter_model.safetensors").items():
        parts = key.split(".")  # base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight
        own = BLOCK[parts[6]]
        tensors[f"base_model.model.model.transformer.blocks.{parts[4]}.{own}.{parts[7]}.weight"] = tensor
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "lora_dropout": 0.05, "bias": "none",
        "target_modules": list(BLOCK.values()), "base_model_name_or_path": "/their/LLaDA-8B-Instruct",
    }  # fmt: skip
    folder = tmp_path / "peer"
    folder.mkdir()

    def write(**changes):
        (folder / "adapter_config.json").write_text(json.dumps(config | changes.pop("config", {})))
        save_file({k: v.clone() for k, v in {**tensors, **changes}.items()}, folder / "adapter_model.safetensors")
        return folder

    write()
    return folder, write, tensors, policy, str(tmp_path / "base")


def test_a_published_adapter_is_renamed_and_says_the_same(peer, tmp_path):
    folder, _, _, policy, base = peer
    assert convert(folder, tmp_path / "ours", base) == (28, sorted(BLOCK))
    found = load_policy(ModelConfig(path=str(tmp_path / "ours")))
    assert torch.equal(logits(found), logits(policy))
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["lora_dropout"]) == (base, 0.0)
    with pytest.raises(CheckpointError, match="without a place|does not fit.*convert-adapter"):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
        load_policy(ModelConfig(path=str(folder)))


def test_four_matrices_as_the_published_target_list_hits_them(peer, tmp_path):
    folder, _, tensors, _, base = peer
    four = {k: v for k, v in tensors.items() if k.split(".")[6] in ("q_proj", "k_proj", "v_proj", "up_proj")}
    save_file(four, folder / "adapter_model.safetensors")
    assert convert(folder, tmp_path / "ours", base) == (16, ["k_proj", "q_proj", "up_proj", "v_proj"])
    assert len(load_policy(ModelConfig(path=str(tmp_path / "ours"))).trainable_parameters()) == 16


def test_an_adapter_that_cannot_be_renamed_is_refused(peer, tmp_path):
    _, write, tensors, _, base = peer
    key = next(iter(tensors))
    refused = [
        ({"base_model.model.model.transformer.ff_out.lora_A.weight": torch.zeros(2, 32)}, "adapts the LM head"),
        ({"base_model.model.model.transformer.wte.lora_A.weight": torch.zeros(2, 32)}, "has no home"),
        ({key.replace("blocks.0", "blocks.9"): tensors[key]}, "has no home"),
        ({key.replace("lora_A", "magnitude"): tensors[key]}, "has no home"),
        ({key: torch.zeros(2, 33)}, "has shape"),
        ({"config": {"r": 3}}, "has shape"),
        ({"config": {"use_dora": True}}, "only plain LoRA"),
        ({"config": {"modules_to_save": ["wte"]}}, "only plain LoRA"),
    ]
    for changes, words in refused:
        with pytest.raises(CheckpointError, match=words):
            convert(write(**changes), tmp_path / "ours", base)
    folder = write()
    save_file({k: v for k, v in tensors.items() if k != key}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="half a pair"):
        convert(folder, tmp_path / "ours", base)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="a pickle"):
        convert(folder, tmp_path / "ours", base)
    assert not (tmp_path / "ours").exists()
