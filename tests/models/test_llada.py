"""LLaDA's published layout in and out, against the stock Llama class; what cannot work is refused."""

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
    """A checkpoint written by hand in LLaDA's own names, and its tensors."""
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
    """The same weights in transformers' Llama, renamed here by hand."""
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


def test_a_published_checkpoint_gives_the_stock_classs_logits(published):
    folder, tensors, config = published
    policy = load_policy(ModelConfig(path=str(folder)))
    tokens = torch.randint(0, config["vocab_size"], (3, 9))
    at = torch.rand(3, 9) < 0.5
    with torch.no_grad():
        found = policy.logits(tokens, None, at)
        assert torch.equal(found, policy.logits(tokens, None, at, int(at.sum())))
        assert torch.allclose(found, stock(tensors, config)(tokens).logits[at], atol=1e-5)


def test_it_is_written_back_with_the_same_names_values_and_fields(published, tmp_path):
    folder, tensors, config = published
    save_policy(load_policy(ModelConfig(path=str(folder))), tmp_path / "again", str(folder))
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_padding_shifts_no_logit(policy):
    tokens = torch.randint(4, policy.vocab_size, (1, 7))
    padded = torch.cat([torch.full((1, 3), policy.pad_id), tokens], 1)
    attend = torch.arange(10)[None] >= 3
    at = torch.ones(1, 7, dtype=torch.bool)
    with torch.no_grad():
        plain = policy.logits(tokens, None, at)
        shifted = policy.logits(padded, attend, torch.cat([torch.zeros(1, 3, dtype=torch.bool), at], 1))
    assert torch.allclose(plain, shifted, atol=1e-3)


def test_a_causal_model_is_refused(policy):
    causal = random_policy()
    for layer in causal.unwrapped_model.base_model.layers:
        layer.self_attn.is_causal = True
    causal.unwrapped_model.config.is_causal = True
    with pytest.raises(CheckpointError, match="attention is causal"):
        check_bidirectional(causal)
    check_bidirectional(policy)


@pytest.mark.parametrize(
    ("change", "words"),
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
def test_a_config_that_cannot_be_right_is_refused(published, change, words):
    folder, _, config = published
    config = {k: v for k, v in (config | change).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
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


def test_lora_changes_the_policy_and_not_its_reference(published, tmp_path):
    folder, _, config = published
    base = load_policy(ModelConfig(path=str(folder)))
    policy = load_policy(ModelConfig(path=str(folder), lora=LoRA(rank=2, alpha=4)), seed=3)
    names = policy.trainable_parameters()
    assert len(names) == 2 * 7 * 2  # layers x matrices x (A, B)
    assert not any("lm_head" in name for name in names)
    with torch.no_grad():
        for parameter in names.values():
            parameter.add_(0.1)
    tokens = torch.randint(0, config["vocab_size"], (2, 6))
    at = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        plain, tuned = base.logits(tokens, None, at), policy.logits(tokens, None, at)
        with policy.reference():
            assert torch.allclose(policy.logits(tokens, None, at), plain, atol=1e-5)
        assert not torch.allclose(tuned, plain, atol=1e-2)
        save_policy(policy, tmp_path / "adapter", str(folder))
        assert torch.allclose(load_policy(ModelConfig(path=str(tmp_path / "adapter"))).logits(tokens, None, at), tuned)


def test_full_fine_tuning_keeps_a_frozen_reference(published):
    folder, _, config = published
    policy = load_policy(ModelConfig(path=str(folder)), reference=True)
    tokens = torch.randint(0, config["vocab_size"], (2, 6))
    at = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        before = policy.logits(tokens, None, at)
        for parameter in policy.model.parameters():
            parameter.add_(0.1)
        with policy.reference():
            assert torch.equal(policy.logits(tokens, None, at), before)
        assert not torch.equal(policy.logits(tokens, None, at), before)
    with pytest.raises(CheckpointError, match="no reference"), load_policy(ModelConfig(path=str(folder))).reference():
        pass


def test_text_survives_encoding_and_decoding(policy):
    prompts = policy.encode(["3,7,12=33", "1,2=3"])
    assert prompts.mask.sum(1).tolist() == [9, 7]
    assert not bool(prompts.mask[1, 0])
    ids = policy.tokenizer("7*3=21")["input_ids"]
    assert policy.decode(torch.tensor([[*ids, policy.eos_id, 7]])) == ["7*3=21"]
    assert "".join(policy.token_text(i) for i in ids) == "7*3=21"
    assert policy.token_text(policy.eos_id) == ""
