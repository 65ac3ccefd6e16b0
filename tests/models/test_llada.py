"""LLaDA's published layout is loaded and saved, and compared with the stock Llama class; invalid ones are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from stipule.errors import CheckpointError
from stipule.models.bidirectional import check_bidirectional
from stipule.models.loading import LoRA, ModelConfig, load_policy, save_policy
from tests.toys import random_policy

TOP = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}


@pytest.fixture
def published(tmp_path):
    """A checkpoint with LLaDA's tensor names, written by hand: its folder, tensors and configuration."""
    torch.manual_seed(0)
    save_policy(random_policy(), tmp_path / "tokenizer", "x")
    folder = tmp_path / "llada"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tmp_path / "tokenizer" / name, folder / name)
    config = json.loads((tmp_path / "tokenizer" / "config.json").read_text())
    config |= {
        "d_model": 48,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 64,
        "rope_theta": 500000.0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    v, d, f = config["vocab_size"], 48, 64
    shapes = {"attn_norm": (d,), "ff_norm": (d,), "ff_proj": (f, d), "up_proj": (f, d), "ff_out": (d, f)}
    tensors = {
        f"model.transformer.blocks.{layer}.{name}.weight": torch.randn(shapes.get(name, (d, d))) / 4
        for layer in range(2)
        for name in BLOCK
    }
    tensors |= {f"model.transformer.{n}.weight": torch.randn((d,) if n == "ln_f" else (v, d)) / 4 for n in TOP}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder, tensors, config


def stock(tensors, config):
    """The same weights in transformers' Llama; tensors are renamed here by hand."""
    names = {f"model.transformer.{a}.weight": f"{b}.weight" for a, b in TOP.items()}
    for layer in range(2):
        names |= {
            f"model.transformer.blocks.{layer}.{a}.weight": f"model.layers.{layer}.{b}.weight" for a, b in BLOCK.items()
        }
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab_size"],
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            tie_word_embeddings=False,
            is_causal=False,
        )
    ).eval()
    llama.load_state_dict({names[name]: tensor for name, tensor in tensors.items()})
    return llama


def test_a_published_checkpoint_gives_the_logits_of_the_stock_class(published):
    folder, tensors, config = published
    policy = load_policy(ModelConfig(path=str(folder)))
    input_ids = torch.randint(0, config["vocab_size"], (3, 9))
    position_mask = torch.rand(3, 9) < 0.5
    with torch.no_grad():
        logits = policy.logits(input_ids, None, position_mask)
        assert torch.equal(logits, policy.logits(input_ids, None, position_mask, int(position_mask.sum())))
        assert torch.allclose(logits, stock(tensors, config)(input_ids).logits[position_mask], atol=1e-5)


def test_a_saved_model_has_the_same_tensors_and_config(published, tmp_path):
    folder, tensors, config = published
    save_policy(load_policy(ModelConfig(path=str(folder))), tmp_path / "saved", str(folder))
    saved_tensors = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved_tensors.keys() == tensors.keys()
    assert all(torch.equal(saved_tensors[name], tensors[name]) for name in tensors)
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == config


def test_padding_changes_no_logit(policy):
    input_ids = torch.randint(4, policy.vocab_size, (1, 7))
    padded = torch.cat([torch.full((1, 3), policy.pad_id), input_ids], 1)
    attention_mask = torch.arange(10)[None] >= 3
    every = torch.ones(1, 7, dtype=torch.bool)
    with torch.no_grad():
        logits = policy.logits(input_ids, None, every)
        padded_logits = policy.logits(padded, attention_mask, attention_mask)
    assert torch.allclose(logits, padded_logits, atol=1e-3)


def test_a_causal_model_is_refused(policy):
    causal = random_policy()
    for layer in causal.unwrapped_model.base_model.layers:
        layer.self_attn.is_causal = True
    causal.unwrapped_model.config.is_causal = True
    with pytest.raises(CheckpointError, match="attention is causal"):
        check_bidirectional(causal)
    check_bidirectional(policy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token_id": 0}, "needs a mask token of its own"),
        ({"mask_token_id": 10**6}, "must be an id of the tokenizer"),
        ({"eos_token_id": 5, "pad_token_id": 5}, "must agree"),
        ({"model_type": "gpt2"}, "supported are llada"),
        ({"alibi": True}, "not supported"),
        ({"d_model": None}, "cannot be read|lacks"),
        ({"mlp_hidden_size": 60}, "cannot be read|do not fit"),
        ({"n_layers": 3}, "do not fit"),
    ],
)
def test_an_invalid_config_is_refused(published, change, message):
    folder, _, config = published
    config = {k: v for k, v in (config | change).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_policy(ModelConfig(path=str(folder)))


def test_truncated_missing_and_pickled_weights_are_refused(published):
    folder, _, _ = published
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_policy(ModelConfig(path=str(folder)))
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_policy(ModelConfig(path=str(folder)))
    with pytest.raises(CheckpointError, match="no readable model at 'nowhere'"):
        load_policy(ModelConfig(path="nowhere"))


def test_lora_changes_the_policy_but_not_its_reference(published, tmp_path):
    folder, _, config = published
    base = load_policy(ModelConfig(path=str(folder)))
    policy = load_policy(ModelConfig(path=str(folder), lora=LoRA(rank=2, alpha=4)), seed=3)
    parameters = policy.trainable_parameters()
    assert len(parameters) == 2 * 7 * 2  # layers x matrices x (A, B)
    assert not any("lm_head" in name for name in parameters)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1)
    input_ids = torch.randint(0, config["vocab_size"], (2, 6))
    every = torch.ones_like(input_ids, dtype=torch.bool)
    with torch.no_grad():
        base_logits, logits = base.logits(input_ids, None, every), policy.logits(input_ids, None, every)
        with policy.reference():
            assert torch.allclose(policy.logits(input_ids, None, every), base_logits, atol=1e-5)
        assert not torch.allclose(logits, base_logits, atol=1e-2)
        save_policy(policy, tmp_path / "adapter", str(folder))
        reloaded = load_policy(ModelConfig(path=str(tmp_path / "adapter")))
        assert torch.allclose(reloaded.logits(input_ids, None, every), logits)


def test_full_fine_tuning_keeps_a_frozen_reference(published):
    folder, _, config = published
    policy = load_policy(ModelConfig(path=str(folder)), reference=True)
    input_ids = torch.randint(0, config["vocab_size"], (2, 6))
    every = torch.ones_like(input_ids, dtype=torch.bool)
    with torch.no_grad():
        before = policy.logits(input_ids, None, every)
        for parameter in policy.model.parameters():
            parameter.add_(0.1)
        with policy.reference():
            assert torch.equal(policy.logits(input_ids, None, every), before)
        assert not torch.equal(policy.logits(input_ids, None, every), before)
    with pytest.raises(CheckpointError, match="no reference"), load_policy(ModelConfig(path=str(folder))).reference():
        pass


def test_encoding_and_decoding_a_text_gives_the_same_text(policy):
    prompts = policy.encode(["3,7,12=33", "1,2=3"])
    assert prompts.prompt_mask.sum(1).tolist() == [9, 7]
    assert not bool(prompts.prompt_mask[1, 0])
    token_ids = policy.tokenizer("7*3=21")["input_ids"]
    assert policy.decode(torch.tensor([[*token_ids, policy.eos_id, 7]])) == ["7*3=21"]
    assert "".join(policy.token_text(i) for i in token_ids) == "7*3=21"
    assert policy.token_text(policy.eos_id) == ""
