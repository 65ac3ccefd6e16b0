"""Families with the tensor names of a stock causal class: Dream, LLaDA-MoE, SDAR, Fast-dLLM v2, and a2d."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from stipule.models.families.family import ALL_LINEAR, Family, require, require_fields, stock_fields

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
# Published target lists name Llama's modules: in these families they match all seven.
TARGETS = {"all": ALL_LINEAR, "published": ALL_LINEAR}


def _reader(
    config_class: type[PreTrainedConfig], checkpoint: str, needed: Mapping[str, Any]
) -> Callable[[Mapping[str, Any]], PreTrainedConfig]:
    def read(published_config: Mapping[str, Any]) -> PreTrainedConfig:
        require_fields(published_config, (*SIZES, "intermediate_size"), checkpoint)
        stock_class = config_class.__name__.removesuffix("Config")
        require(published_config, needed, f"{checkpoint} is read as a stock {stock_class}")
        # is_causal needs transformers 5.4; models/bidirectional.py checks it on the loaded weights.
        return config_class(**{**stock_fields(published_config), "is_causal": False, "use_cache": False})

    return read


# With a sliding window, tokens would not attend to the whole text (or to all earlier blocks).
_NO_WINDOW = {"use_sliding_window": False, "use_mrope": False}
_FULL_ATTENTION = {**_NO_WINDOW, "block_size": None}
_BLOCK_LENGTH_FIELDS = ("block_size", "block_length", "bd_size")

DREAM = Family(
    name="dream",
    model_class=Qwen2ForCausalLM,
    read_config=_reader(Qwen2Config, "a Dream checkpoint", _FULL_ATTENTION),
    lora_targets=TARGETS,
    shift_logits=True,
    mask_token_names=("<|mask|>",),
)


def read_moe_config(published_config: Mapping[str, Any]) -> PreTrainedConfig:
    """A bidirectional Qwen3-MoE configuration from LLaDA-MoE's published `config.json`."""
    checkpoint = "a LLaDA-MoE checkpoint"
    sizes = (*SIZES, "expert_intermediate_size", "num_experts", "num_experts_per_tok")
    require_fields(published_config, sizes, checkpoint)
    layers = published_config["num_hidden_layers"]
    require(
        published_config,
        {
            "qk_layernorm": True,
            "shared_expert_intermediate_size": None,
            "moe_router_score_function": "softmax",
            "moe_router_enable_expert_bias": False,
            "routed_scaling_factor": 1,
            "partial_rotary_factor": 1,
            "clip_qkv": None,
            "norm_topk_prob": False,
            "rope_scaling": None,
        },
        f"{checkpoint} is read as a stock Qwen3-MoE",
    )
    sparse = published_config.get("moe_layer_freq") or [1] * layers
    fields = stock_fields(published_config)
    return Qwen3MoeConfig(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields.get("dense_intermediate_size") or fields["expert_intermediate_size"],
        moe_intermediate_size=fields["expert_intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=fields["num_attention_heads"],
        num_key_value_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"],
        head_dim=fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"],
        hidden_act=fields.get("hidden_act", "silu"),
        max_position_embeddings=fields.get("max_position_embeddings", 8192),
        rms_norm_eps=fields.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(fields.get("rope_theta", 10000.0))},
        attention_bias=fields.get("attention_bias", False),
        tie_word_embeddings=fields.get("tie_word_embeddings", False),
        num_experts=fields["num_experts"],
        num_experts_per_tok=fields["num_experts_per_tok"],
        norm_topk_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[layer for layer, flag in enumerate(sparse) if not flag],
        eos_token_id=fields.get("eos_token_id"),
        pad_token_id=fields.get("pad_token_id"),
        use_sliding_window=False,
        use_cache=False,
        is_causal=False,
    )


LLADA_MOE = Family(
    name="llada_moe",
    model_class=Qwen3MoeForCausalLM,
    read_config=read_moe_config,
    # Experts are stacked in two parameters per layer; the router has no adapter. If the MLP's matrices were listed here
    # too, peft would rewrite the target list for stacked experts again, with twice the rank.
    lora_targets={"all": ALL_LINEAR[:4], "published": ALL_LINEAR[:4]},
    lora_parameters=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    mask_token_names=("<|mask|>",),
)


def _sdar_family(
    config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], name: str, like: Family = DREAM
) -> Family:
    return Family(
        name="sdar",
        model_class=model_class,
        read_config=_reader(config_class, f"an {name} checkpoint", _NO_WINDOW),
        lora_targets=like.lora_targets,
        lora_parameters=like.lora_parameters,
        block_attention="always",
        block_length_fields=_BLOCK_LENGTH_FIELDS,
        mask_token_names=("<|MASK|>",),
    )


def write_sdar_config(
    *,
    width: int,
    layers: int,
    heads: int,
    mlp: int,
    vocabulary: int,
    longest: int,
    mask: int,
    eos: int,
    pad: int,
    block_length: int,
) -> dict[str, Any]:
    """The fields of SDAR's published `config.json` for a model of the given sizes and token ids."""
    return {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "max_position_embeddings": longest,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "block_size": block_length,
        "mask_token_id": mask,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }


# SDAR (Cheng et al. 2025, arXiv 2510.06303), by model_type: Qwen3 with block-causal attention and logits in place. Its
# published generate code lays the grid of blocks from the first token of the prompt.
SDAR: Mapping[str, Family] = {
    "sdar": _sdar_family(Qwen3Config, Qwen3ForCausalLM, "SDAR"),
    "sdar_moe": _sdar_family(Qwen3MoeConfig, Qwen3MoeForCausalLM, "SDAR-MoE", like=LLADA_MOE),
}

# Fast-dLLM v2 (Wu et al. 2025, arXiv 2509.26328): Qwen2 that still predicts the next token.
FAST_DLLM_V2 = Family(
    name="fast_dllm_v2",
    model_class=Qwen2ForCausalLM,
    read_config=_reader(Qwen2Config, "a Fast-dLLM v2 checkpoint", _NO_WINDOW),
    lora_targets=TARGETS,
    shift_logits=True,
    block_attention="always",
    block_length_fields=_BLOCK_LENGTH_FIELDS,
    mask_token_names=("|<MASK>|",),
)


def _a2d_family(
    config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], name: str, like: Family = DREAM
) -> Family:
    return Family(
        name="a2d",
        model_class=model_class,
        read_config=_reader(config_class, f"a {name} checkpoint converted to a diffusion model", _NO_WINDOW),
        lora_targets=like.lora_targets,
        lora_parameters=like.lora_parameters,
        block_attention="optional",
        block_length_fields=_BLOCK_LENGTH_FIELDS,
        mask_token_names=("<|mask|>",),
    )


# Causal checkpoints that can be converted to diffusion models, by model_type.
A2D: Mapping[str, Family] = {
    "llama": _a2d_family(LlamaConfig, LlamaForCausalLM, "Llama"),
    "qwen2": _a2d_family(Qwen2Config, Qwen2ForCausalLM, "Qwen2"),
    "qwen3": _a2d_family(Qwen3Config, Qwen3ForCausalLM, "Qwen3"),
    "qwen3_moe": _a2d_family(Qwen3MoeConfig, Qwen3MoeForCausalLM, "Qwen3-MoE", like=LLADA_MOE),
}
