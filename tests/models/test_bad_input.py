"""Invalid models and settings are refused with what was given, what is allowed and what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stipule.config.recipe import parse_recipe
from stipule.errors import CheckpointError, RecipeError
from stipule.models import versions
from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from stipule.models.versions import check_quantiser, check_transformers
from stipule.training.setup import _load_policy as _load
from tests.models import published


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for name in published.NAMES:
        published.write(name, root / name)
    return root


@pytest.fixture
def change(root, tmp_path):
    """A copy of a checkpoint with other fields in its configuration; None removes a field."""

    def change(name, **fields):
        folder = tmp_path / name
        shutil.copytree(root / name, folder)
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return folder

    return change


def load(folder, **settings):
    return load_policy(ModelConfig(path=str(folder), **settings))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a2d_qwen3", {}, "a causal language model.*model.family=a2d"),
        ("a2d_qwen3", {"family": "dream"}, "model.family is 'dream'.*of family 'a2d'"),
        ("llada", {"family": "dream"}, "model.family is 'dream'.*of family 'llada'"),
        ("llada", {"shift_logits": True}, "never shifted.*leave model.shift_logits out"),
        ("dream", {"shift_logits": False}, "always shifted by one.*leave model.shift_logits out"),
        ("llada", {"mask_id": 0}, "both 0; a masked diffusion model needs a mask token of its own"),
        ("llada", {"mask_id": 10**6}, "mask token id is 1000000"),
        ("llada", {"eos_id": 10**6}, "eos token id is 1000000.*model.eos_id=ID"),
    ],
)
def test_an_invalid_family_shift_or_token_id_is_refused(root, name, settings, message):
    with pytest.raises(CheckpointError, match=message):
        load(root / name, **settings)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llada", {"model_type": "gpt2"}, "model_type = 'gpt2'.*docs/models.md"),
        ("llada", {"model_type": "llada2_moe"}, "needs its own code.*never run here"),
        ("llada_moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size = 64"),
        ("llada_moe", {"moe_router_score_function": "sigmoid"}, "needs 'softmax'"),
        ("dream", {"block_size": 32}, "block_size = 32.*needs None"),
        ("dream", {"use_sliding_window": True}, "use_sliding_window"),
        ("dream", {"hidden_size": None}, "lacks hidden_size"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("llada", {"eos_token_id": 7, "pad_token_id": 7}, "must agree.*model.eos_id=7 or model.eos_id=0"),
        ("dream", {"vocab_size": 10}, "tokenizer has ids up to .* the embedding has 10 rows"),
    ],
)
def test_an_unsupported_config_is_refused(change, name, fields, message):
    with pytest.raises(CheckpointError, match=message):
        load(change(name, **fields))


@pytest.mark.parametrize("section", [{"shift": True}, {"family": "a2d", "shift": True, "mask_token_id": 1}])
def test_an_unknown_key_in_the_diffusion_section_is_refused(change, section):
    folder = change("a2d_llama", diffusion=section)
    message = "`diffusion` of config.json .* has shift; allowed are family, shift_logits, .*; rename or remove the key"
    with pytest.raises(CheckpointError, match=message):
        load(folder, family="a2d", mask_id=1)


def test_an_unknown_key_in_the_diffusion_section_of_an_adapter_is_refused(root, tmp_path):
    folder = adapter(root, tmp_path)
    info = json.loads((folder / "stipule.json").read_text())
    (folder / "stipule.json").write_text(json.dumps(info | {"diffusion": {"shift": False}}))
    with pytest.raises(CheckpointError, match="stipule.json for an adapter.* has shift; allowed are family"):
        load(folder)


def test_every_key_of_the_diffusion_section_is_read(change):
    section = {"family": "a2d", "shift_logits": True, "mask_token_id": 5, "eos_token_id": 7}
    policy = load(change("a2d_qwen3", diffusion=section))
    assert (policy.family.name, policy.family.shift_logits, policy.mask_id, policy.eos_id) == ("a2d", True, 5, 7)


def test_a_missing_mask_id_is_refused_and_can_be_set(change):
    folder = change("a2d_qwen3")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "mask_token"}))
    with pytest.raises(CheckpointError, match="mask token id is None.*model.mask_id=ID or mask_token_id in config"):
        load(folder, family="a2d")
    assert load(folder, family="a2d", mask_id=5).mask_id == 5


def test_the_token_that_ends_a_response_can_be_set(change):
    assert load(change("llada", eos_token_id=7, pad_token_id=7), eos_id=0).eos_id == 0


def test_a_pickle_is_refused_and_never_opened(root, tmp_path):
    folder = published.copy_without(root / "llada", tmp_path / "llada", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/opened'\ntR.")
    with pytest.raises(CheckpointError, match=r"contains pytorch_model.bin.*safetensors.*python -c"):
        load(folder)


def test_shards_are_read_and_a_missing_or_truncated_one_is_refused(root, tmp_path):
    policy = load(root / "llada")
    policy.unwrapped_model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(root / "llada" / name, tmp_path / "shards" / name)
    files = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(files) > 2
    weight_map = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(weight_map) == set(published.llada_shapes(1, 1, 1, published.LAYERS))
    input_ids = torch.tensor([[4, 5, 6]])
    every = torch.ones_like(input_ids, dtype=torch.bool)
    with torch.no_grad():
        logits = load(tmp_path / "shards").logits(input_ids, None, every)
        assert torch.equal(logits, policy.logits(input_ids, None, every))
    files[1].write_bytes(files[1].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{files[1].name}.*truncated"):
        load(tmp_path / "shards")
    files[1].unlink()
    with pytest.raises(CheckpointError, match=f"lacks {files[1].name}"):
        load(tmp_path / "shards")


def adapter(root, tmp_path, base="llada"):
    policy = load(root / base, lora=LoRA(rank=2, alpha=4))
    save_policy(policy, tmp_path / "adapter", str(root / base))
    return tmp_path / "adapter"


def test_an_adapter_on_another_base_is_refused(root, tmp_path):
    folder = adapter(root, tmp_path)
    published.write("llada", tmp_path / "other", seed=5)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "other")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="trained on a base with fingerprint"):
        load(folder)
    config["base_model_name_or_path"] = str(root / "dream")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "stipule.json").unlink()
    with pytest.raises(CheckpointError, match="keys of another shape"):
        load(folder)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            lambda key: key.replace("self_attn.q_proj", "q_proj"),
            "keys without a parameter.*parameters without a key.*convert",
        ),
        (lambda key: None if "layers.1" in key else key, "14 parameters without a key"),
    ],
)
def test_an_adapter_whose_keys_do_not_match_is_refused(root, tmp_path, rename, message):
    folder = adapter(root, tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({rename(k): v for k, v in tensors.items() if rename(k)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_damaged_adapter_is_refused(root, tmp_path):
    folder = adapter(root, tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="adapter at .* cannot be read"):
        load(folder)


def test_a_quantised_base_without_the_extra_is_refused(root, monkeypatch):
    monkeypatch.setattr(versions, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'stipule\[quant\]'"):
        load(root / "llada", quantize="nf4", lora=LoRA(rank=2))
    with pytest.raises(CheckpointError, match="bitsandbytes is not installed"):
        check_quantiser()


def test_an_old_transformers_is_refused():
    with pytest.raises(CheckpointError, match=r"transformers 5.3.1 .*pip install -U 'transformers>=5.4,<6'"):
        check_transformers("5.3.1")
    check_transformers("5.4.0")
    check_transformers("5.23.0.dev0")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"trust_remote_code": True}, "model.trust_remote_code is not a setting"),
        ({"quantize": "nf4", "autocast": True}, "autocast is true; autocast is for float32"),
        ({"lora": {"dropout": 1.0}}, "model.lora.dropout is 1.0"),
        ({"family": "gpt"}, "model.family is 'gpt'"),
    ],
)
def test_an_invalid_model_section_is_refused(model, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"task": {"kind": "countdown"}, "model": model})


@pytest.mark.parametrize(
    ("device", "model", "message"),
    [
        ("meta", {"quantize": "nf4"}, "needs adapters to train"),
        ("cpu", {"quantize": "nf4", "lora": {"rank": 2}}, "compute no gradient"),
        ("cpu", {"device_map": "auto"}, "spreads layers for evaluation"),
    ],
)
def test_training_with_settings_for_evaluation_is_refused(root, monkeypatch, device, model, message):
    monkeypatch.setattr("stipule.training.setup.load_policy", lambda *_, **__: pytest.fail("the model was loaded"))
    recipe = parse_recipe({"task": {"kind": "countdown"}, "model": model})
    with pytest.raises(RecipeError, match=message):
        _load(recipe, None, torch.device(device))


def test_dropout_on_stacked_experts_is_refused(root):
    with pytest.raises(RecipeError, match="have no dropout"):
        load(root / "llada_moe", lora=LoRA(rank=2, dropout=0.05))
