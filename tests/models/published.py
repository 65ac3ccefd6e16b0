"""Tiny checkpoints in the published layout of each family: tensor names and config fields are written by hand."""

import json
import shutil
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from stipule.models.tiny_tokenizer import build_tokenizer
from tests.toys import COUNTDOWN

WIDTH, LAYERS, HEADS, KV_HEADS, MLP, EXPERTS = 32, 2, 4, 2, 48, 4
NAMES = (
    "llada",
    "illada",
    "dream",
    "llada_moe",
    "a2d_llama",
    "a2d_qwen2",
    "a2d_qwen3",
    "bert",
    "roberta",
    "modernbert",
)
BLOCK_NAMES = ("sdar", "sdar_moe", "fast_dllm_v2", "a2d_block")  # block diffusion models
BLOCK_LENGTH = 4
SHIFTED = ("dream", "a2d_llama", "fast_dllm_v2")


@cache
def tokenizer():
    """The tokenizer of the toy task: end-of-text 0, mask 1, start 2, end of turn 3, then the words."""
    vocabulary = COUNTDOWN.vocabulary
    return build_tokenizer(vocabulary.words, vocabulary.pattern)


def settings(name):
    """The settings of `model` that a recipe needs besides the path."""
    if not name.startswith("a2d"):
        return {}
    block_length = {"block_length": BLOCK_LENGTH} if name == "a2d_block" else {}
    return {"family": "a2d", "mask_id": 1, "shift_logits": name in SHIFTED, **block_length}


def write(name: str, folder: Path, seed: int = 0):
    """Writes the checkpoint; returns its tensors and its configuration."""
    vocab_size = len(tokenizer())
    config = {**_config(name), "vocab_size": vocab_size}
    if "embedding_size" in config:
        config["embedding_size"] = vocab_size
    torch.manual_seed(seed)
    tensors = {key: _random_tensor(key, shape) for key, shape in _shapes(name, vocab_size).items()}
    folder.mkdir(parents=True)
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors, config


def copy_without(source: Path, folder: Path, *names: str) -> Path:
    """A copy of the checkpoint without some of its files."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*names))
    return folder


def _random_tensor(key, shape):
    """Weights of norms are near 1; matrices are large enough that every logit depends on every token."""
    if ("norm" in key.lower() or "ln_f" in key) and ("weight" in key or "gamma" in key):
        return 1 + torch.randn(shape) / 8
    return torch.randn(shape) / (4 if len(shape) > 1 else 16)


def _config(name):
    if name in ("llada", "illada"):
        return {
            "architectures": ["LLaDAModelLM"], "model_type": "llada", "block_type": "llama", "d_model": WIDTH,
            "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": HEADS, "mlp_hidden_size": MLP, "embedding_size": 0,
            "max_sequence_length": 256, "rope": True, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "alibi": False,
            "weight_tying": False, "activation_type": "silu", "layer_norm_type": "rms", "include_bias": False,
            "include_qkv_bias": False, "attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0,
            "multi_query_attention": None, "mask_token_id": 5 if name == "illada" else 1, "eos_token_id": 0,
            "pad_token_id": 0, "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
        }  # fmt: skip
    causal = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "intermediate_size": MLP, "hidden_act": "silu",
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "attention_dropout": 0.0, "use_cache": True,
        "eos_token_id": 0, "bos_token_id": 2, "torch_dtype": "float32", "transformers_version": "4.46.2",
    }  # fmt: skip
    if name == "dream":
        return causal | {
            "model_type": "Dream", "architectures": ["DreamModel"], "mask_token_id": 1, "pad_token_id": 0,
            "rope_theta": 1000000.0, "rope_scaling": None, "use_sliding_window": False, "sliding_window": None,
            "max_window_layers": 28, "use_mrope": False, "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
        }  # fmt: skip
    window = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28, "rope_scaling": None}
    if name in ("sdar", "sdar_moe"):
        sdar = causal | window | {
            "model_type": name, "architectures": ["SDARForCausalLM"], "block_size": BLOCK_LENGTH, "mask_token_id": 1,
            "head_dim": 16, "attention_bias": False, "fuse_cross_entropy": True, "pad_token_id": 0,
            "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
        }  # fmt: skip
        if name == "sdar":
            return sdar
        return sdar | {
            "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True,
            "decoder_sparse_step": 1, "mlp_only_layers": [],
        }  # fmt: skip
    if name == "fast_dllm_v2":
        return causal | window | {
            "model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": BLOCK_LENGTH,
            "layer_types": ["full_attention"] * LAYERS, "mask_token_id": 1, "pad_token_id": 0,
            "auto_map": {"AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM"},
        }  # fmt: skip
    if name == "llada_moe":
        moe = causal | {
            "model_type": "llada", "architectures": ["LLaDAMoEModelLM"], "num_key_value_heads": HEADS,
            "expert_intermediate_size": 16, "dense_intermediate_size": MLP, "shared_expert_intermediate_size": None,
            "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_layer_freq": [1] * LAYERS, "qk_layernorm": True,
            "norm_topk_prob": None, "moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False,
            "routed_scaling_factor": 1, "partial_rotary_factor": 1, "rope_scaling": None, "pad_token_id": 0,
            "mask_token_id": 1, "rope_theta": 50000.0, "rms_norm_eps": 1e-5,
        }  # fmt: skip
        del moe["intermediate_size"]
        return moe
    if name == "a2d_llama":
        return causal | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": [7, 0]}
    if name == "a2d_qwen2":
        return causal | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}
    if name in ("a2d_qwen3", "a2d_block"):
        tied = {"tie_word_embeddings": True, "head_dim": 16, "attention_bias": False}
        return causal | tied | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    masked = {
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": MLP,
        "hidden_act": "gelu", "max_position_embeddings": 64, "pad_token_id": 0, "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "type_vocab_size": 2,
    }  # fmt: skip
    if name == "bert":
        return masked | {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    if name == "roberta":
        return masked | {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "eos_token_id": 0}
    return {
        "model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": MLP, "norm_eps": 1e-5,
        "hidden_activation": "gelu", "max_position_embeddings": 128, "global_attn_every_n_layers": 2,
        "local_attention": 128, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "pad_token_id": 0,
        "eos_token_id": 0, "sep_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "attention_dropout": 0.0,
        "embedding_dropout": 0.0, "mlp_dropout": 0.0, "classifier_dropout": 0.0, "classifier_pooling": "mean",
    }  # fmt: skip


_QWEN3 = ("a2d_qwen3", "a2d_block", "sdar", "sdar_moe")


def _shapes(name, v):
    d, f = WIDTH, MLP
    if name in ("llada", "illada"):
        return llada_shapes(v, d, f, LAYERS)
    if name in ("bert", "roberta"):
        return _bert(name, v, d, f)
    if name == "modernbert":
        shapes = {
            "model.embeddings.tok_embeddings.weight": (v, d),
            "model.embeddings.norm.weight": (d,),
            "model.final_norm.weight": (d,),
            "head.dense.weight": (d, d),
            "head.norm.weight": (d,),
            "decoder.bias": (v,),
        }
        for n in range(LAYERS):
            block = {"attn.Wqkv": (3 * d, d), "attn.Wo": (d, d), "mlp.Wi": (2 * f, d), "mlp.Wo": (d, f)}
            block |= {"mlp_norm": (d,)} | ({"attn_norm": (d,)} if n else {})
            shapes |= {f"model.layers.{n}.{key}.weight": shape for key, shape in block.items()}
        return shapes
    head_dim = 16 if name in _QWEN3 else d // HEADS
    kv_heads = HEADS if name == "llada_moe" else KV_HEADS
    shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if name not in ("a2d_qwen3", "a2d_block"):  # its LM head is tied to the embedding
        shapes["lm_head.weight"] = (v, d)
    for n in range(LAYERS):
        block = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        key_value = (kv_heads * head_dim, d)
        attention = {"q_proj": (HEADS * head_dim, d), "k_proj": key_value, "v_proj": key_value}
        block |= {f"self_attn.{key}.weight": shape for key, shape in attention.items()}
        block["self_attn.o_proj.weight"] = (d, HEADS * head_dim)
        if name in ("dream", "a2d_qwen2", "fast_dllm_v2"):
            block |= {f"self_attn.{key}.bias": shape[:1] for key, shape in attention.items()}
        if name in ("llada_moe", *_QWEN3):
            block |= {f"self_attn.{key}_norm.weight": (head_dim,) for key in "qk"}
        mlp = {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
        if name in ("llada_moe", "sdar_moe"):
            block["mlp.gate.weight"] = (EXPERTS, d)
            for e in range(EXPERTS):
                block |= {f"mlp.experts.{e}.{k}.weight": tuple(16 if x == f else x for x in s) for k, s in mlp.items()}
        else:
            block |= {f"mlp.{key}.weight": shape for key, shape in mlp.items()}
        shapes |= {f"model.layers.{n}.{key}": shape for key, shape in block.items()}
    return shapes


def llada_shapes(v, d, f, layers):
    """Names and shapes of LLaDA's published tensors."""
    block = {"attn_norm": (d,), "ff_norm": (d,), "q_proj": (d, d), "k_proj": (d, d), "v_proj": (d, d)}
    block |= {"attn_out": (d, d), "ff_proj": (f, d), "up_proj": (f, d), "ff_out": (d, f)}
    shapes = {f"model.transformer.blocks.{n}.{k}.weight": shape for n in range(layers) for k, shape in block.items()}
    return shapes | {
        f"model.transformer.{k}.weight": (d,) if k == "ln_f" else (v, d) for k in ("wte", "ln_f", "ff_out")
    }


def _bert(name, v, d, f):
    """BERT's first release has the names gamma and beta, and a pooler that is not used."""
    scale, offset = ("gamma", "beta") if name == "bert" else ("weight", "bias")
    linear = {"attention.self.query": (d, d), "attention.self.key": (d, d), "attention.self.value": (d, d)}
    linear |= {"attention.output.dense": (d, d), "intermediate.dense": (f, d), "output.dense": (d, f)}
    shapes = {
        f"{name}.embeddings.word_embeddings.weight": (v, d),
        f"{name}.embeddings.position_embeddings.weight": (64, d),
        f"{name}.embeddings.token_type_embeddings.weight": (2, d),
        f"{name}.embeddings.LayerNorm.{scale}": (d,),
        f"{name}.embeddings.LayerNorm.{offset}": (d,),
        f"{name}.pooler.dense.weight": (d, d),
        f"{name}.pooler.dense.bias": (d,),
    }
    for n in range(LAYERS):
        prefix = f"{name}.encoder.layer.{n}."
        shapes |= {f"{prefix}{key}.weight": shape for key, shape in linear.items()}
        shapes |= {f"{prefix}{key}.bias": shape[:1] for key, shape in linear.items()}
        shapes |= {f"{prefix}{k}.LayerNorm.{w}": (d,) for k in ("attention.output", "output") for w in (scale, offset)}
    if name == "roberta":
        head = {"dense.weight": (d, d), "dense.bias": (d,), "layer_norm.weight": (d,), "layer_norm.bias": (d,)}
        return shapes | {f"lm_head.{key}": shape for key, shape in (head | {"bias": (v,)}).items()}
    head = {"transform.dense.weight": (d, d), "transform.dense.bias": (d,), "bias": (v,)}
    head |= {f"transform.LayerNorm.{w}": (d,) for w in (scale, offset)}
    shapes |= {f"cls.predictions.{key}": shape for key, shape in head.items()}
    return shapes | {"cls.seq_relationship.weight": (2, d), "cls.seq_relationship.bias": (2,)}
