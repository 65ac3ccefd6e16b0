"""Export and adapter conversion: plain transformers loads the model that was trained."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from stipule.commands import export as export_module
from stipule.commands.export import convert, export
from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.errors import CheckpointError, RecipeError
from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from tests.models import published

INPUT_IDS = torch.tensor([[4, 5, 1, 6, 1], [7, 1, 8, 9, 4]])
EVERY = torch.ones_like(INPUT_IDS, dtype=torch.bool)
LLADA_NAMES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "attn_out", "gate_proj": "ff_proj"}
LLADA_NAMES |= {"up_proj": "up_proj", "down_proj": "ff_out"}


def logits(policy):
    with torch.no_grad():
        return policy.logits(INPUT_IDS, None, EVERY)


@pytest.fixture(params=["llada", "dream", "llada_moe", "bert", "a2d_qwen3"])
def run(request, tmp_path):
    """The family, a run folder with one checkpoint of a changed adapter, and its policy."""
    name = request.param
    base = tmp_path / name
    published.write(name, base)
    model = {"path": str(base), "lora": {"rank": 2, "alpha": 4}, **published.settings(name)}
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


def test_a_merged_export_has_the_logits_of_the_trained_model(run, tmp_path):
    name, folder, policy = run
    summary = export(folder, tmp_path / "out", merge=True)
    assert "whole model in float32" in summary
    exported = load_policy(ModelConfig(path=str(tmp_path / "out")))
    assert (logits(exported) - logits(policy)).abs().max() <= 1e-5
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    if name in ("llada", "dream", "llada_moe"):  # names and fields of the base, so its published code loads it
        assert names == set(load_file(tmp_path / name / "model.safetensors"))
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config == json.loads((tmp_path / name / "config.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "reward/mean 0.5" in card and "rank: 2" in card and "weights were in float32" in card
    with pytest.raises(RecipeError, match="already exists"):
        export(folder, tmp_path / "out", merge=True)


def test_a_stock_export_is_loaded_by_plain_transformers(run, tmp_path):
    name, folder, policy = run
    with pytest.raises(RecipeError, match="add --merge"):
        export(folder, tmp_path / "out", merge=False, layout="stock")
    export(folder, tmp_path / "out", merge=True, layout="stock")
    auto_class = AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM
    stock = auto_class.from_pretrained(tmp_path / "out").eval()
    assert type(stock).__module__.startswith("transformers.")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("7*3=21")["input_ids"]
    with torch.no_grad():
        stock_logits = stock(input_ids=INPUT_IDS).logits
    if name in published.SHIFTED:
        stock_logits = torch.cat([stock_logits[:, :1], stock_logits[:, :-1]], 1)
    assert (stock_logits.flatten(0, 1) - logits(policy)).abs().max() <= 1e-5
    exported = load_policy(ModelConfig(path=str(tmp_path / "out")))  # config.json alone has all settings
    assert (exported.mask_id, exported.eos_id) == (policy.mask_id, policy.eos_id)
    assert (logits(exported) - logits(policy)).abs().max() <= 1e-5


# peft reads an attribute that transformers has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_block_model_is_not_exported_in_the_stock_layout(tmp_path):
    published.write("sdar", tmp_path / "sdar")
    with pytest.raises(RecipeError, match="block length 4.*leave --layout out"):
        export(str(tmp_path / "sdar"), tmp_path / "out", merge=False, layout="stock")
    export(str(tmp_path / "sdar"), tmp_path / "out", merge=False)
    assert load_policy(ModelConfig(path=str(tmp_path / "out"))).block_length == 4


def test_an_adapter_is_exported_without_its_base(run, tmp_path):
    name, folder, policy = run
    assert "an adapter on" in export(folder, tmp_path / "out", merge=False)
    exported = load_policy(ModelConfig(path=str(tmp_path / "out")))
    assert torch.equal(logits(exported), logits(policy))
    if name == "dream":  # peft finds every key too
        base = load_policy(ModelConfig(path=str(tmp_path / name)))
        base.model = PeftModel.from_pretrained(base.unwrapped_model, str(tmp_path / "out")).eval()
        assert torch.allclose(logits(base), logits(policy), atol=1e-6)


def test_a_merge_that_changes_the_model_is_refused(tmp_path, monkeypatch):
    published.write("llada", tmp_path / "llada")
    policy = load_policy(ModelConfig(path=str(tmp_path / "llada"), lora=LoRA(rank=2)))
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)
    save_policy(policy, tmp_path / "adapter", str(tmp_path / "llada"))
    monkeypatch.setattr(export_module, "MERGED", {"float32": -1.0})
    with pytest.raises(CheckpointError, match="merging changes log-probabilities"):
        export(str(tmp_path / "adapter"), tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


def test_a_failed_upload_keeps_the_folder_and_says_how_to_upload_it(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="is complete.*hf upload"):
        export_module.upload(tmp_path / "out", "me/model")


@pytest.fixture
def d1_adapter(tmp_path):
    """An adapter as d1's code writes it: folder, a function that writes it with changes, tensors, policy, base."""
    published.write("llada", tmp_path / "base")
    policy = load_policy(ModelConfig(path=str(tmp_path / "base"), lora=LoRA(rank=2, alpha=4)))
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape) / 20)
    save_policy(policy, tmp_path / "stock", str(tmp_path / "base"))
    tensors = {}
    for key, tensor in load_file(tmp_path / "stock" / "adapter_model.safetensors").items():
        names = key.split(".")  # base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight
        block = f"base_model.model.model.transformer.blocks.{names[4]}"
        tensors[f"{block}.{LLADA_NAMES[names[6]]}.{names[7]}.weight"] = tensor
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "lora_dropout": 0.05, "bias": "none",
        "target_modules": list(LLADA_NAMES.values()), "base_model_name_or_path": "/other/LLaDA-8B-Instruct",
    }  # fmt: skip
    folder = tmp_path / "d1"
    folder.mkdir()

    def write(**changes):
        (folder / "adapter_config.json").write_text(json.dumps(config | changes.pop("config", {})))
        save_file({k: v.clone() for k, v in {**tensors, **changes}.items()}, folder / "adapter_model.safetensors")
        return folder

    write()
    return folder, write, tensors, policy, str(tmp_path / "base")


def test_a_renamed_adapter_gives_the_same_logits(d1_adapter, tmp_path):
    folder, _, _, policy, base = d1_adapter
    assert convert(folder, tmp_path / "converted", base) == (28, sorted(LLADA_NAMES))
    converted = load_policy(ModelConfig(path=str(tmp_path / "converted")))
    assert torch.equal(logits(converted), logits(policy))
    config = json.loads((tmp_path / "converted" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["lora_dropout"]) == (base, 0.0)
    with pytest.raises(CheckpointError, match="without a parameter|does not fit.*convert-adapter"):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
        load_policy(ModelConfig(path=str(folder)))


def test_an_adapter_of_the_four_published_target_matrices_is_converted(d1_adapter, tmp_path):
    folder, _, tensors, _, base = d1_adapter
    four = {k: v for k, v in tensors.items() if k.split(".")[6] in ("q_proj", "k_proj", "v_proj", "up_proj")}
    save_file(four, folder / "adapter_model.safetensors")
    assert convert(folder, tmp_path / "converted", base) == (16, ["k_proj", "q_proj", "up_proj", "v_proj"])
    assert len(load_policy(ModelConfig(path=str(tmp_path / "converted"))).trainable_parameters()) == 16


def test_an_adapter_that_cannot_be_converted_is_refused(d1_adapter, tmp_path):
    _, write, tensors, _, base = d1_adapter
    key = next(iter(tensors))
    refused = [
        ({"base_model.model.model.transformer.ff_out.lora_A.weight": torch.zeros(2, 32)}, "adapts the LM head"),
        ({"base_model.model.model.transformer.wte.lora_A.weight": torch.zeros(2, 32)}, "matches no module"),
        ({key.replace("blocks.0", "blocks.9"): tensors[key]}, "matches no module"),
        ({key.replace("lora_A", "magnitude"): tensors[key]}, "matches no module"),
        ({key: torch.zeros(2, 33)}, "has shape"),
        ({"config": {"r": 3}}, "has shape"),
        ({"config": {"use_dora": True}}, "only plain LoRA"),
        ({"config": {"modules_to_save": ["wte"]}}, "only plain LoRA"),
    ]
    for changes, message in refused:
        with pytest.raises(CheckpointError, match=message):
            convert(write(**changes), tmp_path / "converted", base)
    folder = write()
    save_file({k: v for k, v in tensors.items() if k != key}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="lora_A without lora_B"):
        convert(folder, tmp_path / "converted", base)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="a pickle"):
        convert(folder, tmp_path / "converted", base)
    assert not (tmp_path / "converted").exists()
