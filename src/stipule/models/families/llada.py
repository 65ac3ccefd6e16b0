"""LLaDA: a bidirectional Llama under other names (LLaDA-8B Base and Instruct, LLaDA 1.5, iLLaDA, MMaDA's text model).

Logits in float32 are bitwise those of LLaDA's code (docs/decisions.md). Tensors are renamed when loading; transformers
saves them under the published names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from stipule.models.families.family import ALL_LINEAR, Family, require, require_fields


class LladaConfig(LlamaConfig):
    """Llama's configuration with LLaDA's model type, which selects the renaming of tensors."""

    model_type = "llada"


class LladaForMaskedLM(LlamaForCausalLM):
    """Llama's network with LLaDA's model type; attention is bidirectional because `config.is_causal` is False."""

    config_class = LladaConfig


# Published name -> stock name. Order matters: in a block `ff_out` is the down projection, outside the LM head.
LLADA_BLOCK = {
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
LLADA_TOP = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}

register_checkpoint_conversion_mapping(
    "llada",
    [
        WeightRenaming(rf"^model\.transformer\.blocks\.(\d+)\.{published}\.", rf"model.layers.\1.{stock}.")
        for published, stock in LLADA_BLOCK.items()
    ]
    + [WeightRenaming(rf"^model\.transformer\.{published}\.", f"{stock}.") for published, stock in LLADA_TOP.items()],
)

# Options of LLaDA's code that a Llama cannot express, with the value that every released checkpoint has.
_LLADA_ONLY = {
    "alibi": False,
    "attention_layer_norm": False,
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "multi_query_attention": None,
    "rope": True,
    "scale_logits": False,
}


def read_llada_config(published_config: Mapping[str, Any]) -> PreTrainedConfig:
    """A bidirectional Llama configuration from LLaDA's published `config.json`.

    Raises CheckpointError for fields that are missing or that a Llama cannot express.
    """
    checkpoint = "a LLaDA checkpoint"
    require(published_config, _LLADA_ONLY, f"{checkpoint} is read as a stock Llama")
    require_fields(published_config, ("d_model", "n_heads", "n_layers", "vocab_size"), checkpoint)
    width = published_config["d_model"]
    return LladaConfig(
        vocab_size=_embedding_rows(published_config),
        hidden_size=width,
        intermediate_size=published_config.get("mlp_hidden_size") or published_config["mlp_ratio"] * width,
        num_hidden_layers=published_config["n_layers"],
        num_attention_heads=published_config["n_heads"],
        num_key_value_heads=published_config.get("n_kv_heads") or published_config["n_heads"],
        max_position_embeddings=published_config.get("max_sequence_length", 4096),
        rms_norm_eps=published_config.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(published_config.get("rope_theta", 10000.0))},
        tie_word_embeddings=published_config.get("weight_tying", False),
        eos_token_id=published_config.get("eos_token_id"),
        pad_token_id=published_config.get("pad_token_id"),
        bos_token_id=None,
        is_causal=False,  # needs transformers 5.4; models/bidirectional.py checks it on the loaded weights
    )


def _embedding_rows(published_config: Mapping[str, Any]) -> int:
    """Rows of the embedding; for MMaDA, which added image tokens, `new_vocab_size`."""
    sizes = (published_config.get("new_vocab_size"), published_config.get("embedding_size"))
    return sizes[0] or sizes[1] or published_config["vocab_size"]


def write_llada_config(
    *, width: int, layers: int, heads: int, mlp: int, vocabulary: int, longest: int, mask: int, eos: int, pad: int
) -> dict[str, Any]:
    """The fields of LLaDA's published `config.json` for a model of the given sizes and token ids."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": width,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": heads,
        "mlp_hidden_size": mlp,
        "vocab_size": vocabulary,
        "embedding_size": vocabulary,
        "max_sequence_length": longest,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "weight_tying": False,
        "mask_token_id": mask,
        "eos_token_id": eos,
        "pad_token_id": pad,
        **{field: value for field, value in _LLADA_ONLY.items() if value is not None},
    }


LLADA = Family(
    name="llada",
    model_class=LladaForMaskedLM,
    read_config=read_llada_config,
    lora_targets={
        "all": ALL_LINEAR,
        # The modules that the published target list matches under LLaDA's module names (d1, SPG, wd1, ESPO).
        "published": ("q_proj", "k_proj", "v_proj", "up_proj"),
    },
    mask_token_names=("<|mdm_mask|>",),
)
