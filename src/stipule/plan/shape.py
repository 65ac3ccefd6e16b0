"""The sizes of a recipe's network, computed from `config.json` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stipule.errors import CheckpointError, StipuleError
from stipule.models.families import family_of, write_llada_config
from stipule.models.loading import LoRA, read_published_config, resolve_model_path

_LLADA_8B = write_llada_config(
    width=4096, layers=32, heads=32, mlp=12288, vocabulary=126464, longest=4096, mask=126336, eos=126081, pad=126081
) | {"rope_theta": 500000.0}
# SDAR has the sizes of the Qwen3 models that it was trained from.
_SDAR_8B: Mapping[str, Any] = {
    "model_type": "sdar",
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "block_size": 4,
    "mask_token_id": 151669,
    "eos_token_id": 151643,
    "pad_token_id": 151643,
}
_SDAR_1_7B = {
    **_SDAR_8B,
    "hidden_size": 2048,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "intermediate_size": 6144,
    "tie_word_embeddings": True,
}
# Published sizes, so that planning needs no download. Only keys that determine shapes and ids are included.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "GSAI-ML/LLaDA-8B-Instruct": _LLADA_8B,
    "GSAI-ML/LLaDA-8B-Base": _LLADA_8B,
    "GSAI-ML/LLaDA-1.5": _LLADA_8B,
    "JetLM/SDAR-8B-Chat": _SDAR_8B,
    "JetLM/SDAR-1.7B-Chat": _SDAR_1_7B,
    "Dream-org/Dream-v0-Instruct-7B": {
        "model_type": "Dream",
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "mask_token_id": 151666,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
    },
}


def published_config(path: str, file: Path | None = None) -> tuple[dict[str, Any], str]:
    """A model's `config.json`, and a text that names its source.

    Sources in this order: the file given, a folder of that name, the published sizes above, the hub. Raises
    CheckpointError if none of them has it.
    """
    if file is not None:
        try:
            return json.loads(file.read_text()), str(file)
        except (OSError, json.JSONDecodeError) as cause:
            raise CheckpointError(
                f"--config {file} is not readable JSON: {cause}; give the model's config.json"
            ) from cause
    if path in PUBLISHED and not Path(path).exists():
        return dict(PUBLISHED[path]), "published sizes that come with stipule (nothing was downloaded)"
    try:
        return read_published_config(resolve_model_path(path)), "config.json"
    except CheckpointError as cause:
        raise CheckpointError(
            f"the config.json of {path!r} cannot be read here ({cause}); give --config FILE, or one of "
            f"{', '.join(PUBLISHED)}"
        ) from cause


@dataclass(frozen=True)
class NetworkShape:
    """The sizes that determine the operations of a network. All are counts of numbers, not bytes."""

    parameters: int
    backbone: int  # in the matrices of the layers; every token is multiplied by all of them
    head: int  # in the LM head: D x V
    layers: int
    width: int  # D
    attention: int  # heads x head dimension
    vocabulary: int  # V
    adapters: int  # in the LoRA matrices; 0 for full fine-tuning
    position_wise: int  # of `backbone`: matrices that the last layer computes only for tokens that need logits
    adapters_position_wise: int  # of `adapters`: the same
    block_length: int | None = None  # of a block diffusion model

    @property
    def trained(self) -> int:
        return self.adapters or self.parameters


def shape_of(config_json: Mapping[str, Any], lora: LoRA | None = None) -> NetworkShape:
    """Counts the network on the meta device, so no weights are allocated.

    Raises CheckpointError if the family is unknown, StipuleError for a mixture of experts.
    """
    family = family_of(config_json)
    config = family.read_config(config_json)
    with torch.device("meta"):
        network = family.model_class(config)
    if any(p.ndim > 2 for p in network.parameters()):
        raise StipuleError(
            "the network is a mixture of experts; stipule plan counts dense networks only; measure one step instead: "
            "stipule train RECIPE training.steps=1"
        )
    head = network.get_output_embeddings().weight
    linear = {n: m for n, m in network.named_modules() if isinstance(m, torch.nn.Linear) and m.weight is not head}
    targets = family.lora_targets[lora.targets] if lora else ()
    adapted = {n: sum(m.weight.shape) for n, m in linear.items() if n.rsplit(".", 1)[-1] in targets}
    last_layer = tuple(f"layers.{config.num_hidden_layers - 1}.{name}" for name in family.position_wise)
    position_wise = {n for n in linear if any(f".{name}." in f".{n}." for name in last_layer)}
    heads = config.num_attention_heads
    return NetworkShape(
        parameters=sum(p.numel() for p in network.parameters()),
        backbone=sum(m.weight.numel() for m in linear.values()),
        head=head.numel(),
        layers=config.num_hidden_layers,
        width=head.shape[1],
        attention=heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocabulary=head.shape[0],
        adapters=lora.rank * sum(adapted.values()) if lora else 0,
        position_wise=sum(linear[n].weight.numel() for n in position_wise),
        adapters_position_wise=lora.rank * sum(adapted[n] for n in position_wise & set(adapted)) if lora else 0,
        block_length=family.block_length,
    )
