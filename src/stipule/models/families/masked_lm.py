"""Any masked language model of transformers (BERT, RoBERTa, ModernBERT, ...); these are already bidirectional."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from stipule.errors import CheckpointError
from stipule.models.families.family import Family, require, require_fields, stock_fields

# The attributes that map last hidden states to logits, applied in this order.
_LM_HEADS = (("cls",), ("lm_head",), ("head", "decoder"))
# Names of the attention and MLP matrices in these classes; ModernBERT's start with W.
_MATRICES = ("query", "key", "value", "dense", "Wqkv", "Wo", "Wi")
# Models whose position ids start at the padding id + 1, as in fairseq.
_POSITIONS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm")


def is_masked_lm(model_type: str) -> bool:
    """Whether transformers has a masked language model of this `model_type`."""
    return model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_MASKED_LM_MAPPING


def masked_lm_family(model_type: str) -> Family:
    """The family of one `model_type`."""
    model_class = MODEL_FOR_MASKED_LM_MAPPING[CONFIG_MAPPING[model_type]]
    return Family(
        name="masked_lm",
        model_class=model_class[0] if isinstance(model_class, tuple) else model_class,
        read_config=lambda published_config: _read_config(model_type, published_config),
        lora_targets={"all": _MATRICES, "published": _MATRICES},
        lm_head_modules=("cls", "lm_head", "head", "decoder"),
        supports_kv_cache=False,
        position_wise=(),
        lm_head=_lm_head,
        first_position=lambda config: config.pad_token_id + 1 if model_type in _POSITIONS_FROM_PADDING else 0,
        mask_token_names=("[MASK]", "<mask>"),
        unused_tensors=(r".*pooler\..*", r"cls\.seq_relationship\..*", r".*position_ids"),
    )


def _read_config(model_type: str, published_config: Mapping[str, Any]) -> PreTrainedConfig:
    checkpoint = f"a {model_type} checkpoint"
    require_fields(published_config, ("vocab_size", "hidden_size", "num_hidden_layers"), checkpoint)
    encoder = {"is_decoder": False, "add_cross_attention": False}
    require(published_config, encoder, f"{checkpoint} is read as an encoder")
    return CONFIG_MAPPING[model_type](**stock_fields(published_config))


def _lm_head(model: PreTrainedModel, hidden_states: Tensor) -> Tensor:
    for names in _LM_HEADS:
        if all(hasattr(model, name) for name in names):
            outputs = hidden_states
            for name in names:
                outputs = getattr(model, name)(outputs)
            return outputs
    raise CheckpointError(
        f"the LM head of {type(model).__name__} has an unknown name; known names are "
        f"{', '.join(' + '.join(names) for names in _LM_HEADS)} (BERT, RoBERTa, ModernBERT and similar); use one of "
        "these models, or add the name in models/families/masked_lm.py"
    )
