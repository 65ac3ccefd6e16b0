"""Any masked language model of transformers (BERT, RoBERTa, ModernBERT, ...): bidirectional as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from stipule.errors import CheckpointError
from stipule.models.families.family import Family, require, require_fields, stock_fields

# From last hidden states to logits: the attribute, or the attributes one after the other.
_HEADS = (("cls",), ("lm_head",), ("head", "decoder"))
# Attention and MLP matrices by their names in these classes, ModernBERT's (W...) among them.
_MATRICES = ("query", "key", "value", "dense", "Wqkv", "Wo", "Wi")
# Models that start counting at the padding id + 1, as fairseq did.
_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm")


def is_masked_lm(kind: str) -> bool:
    """Whether transformers has a masked language model of this `model_type`, and no causal twin we know better."""
    return kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in MODEL_FOR_MASKED_LM_MAPPING


def masked_lm_family(kind: str) -> Family:
    """The family of one `model_type`."""
    model_class = MODEL_FOR_MASKED_LM_MAPPING[CONFIG_MAPPING[kind]]
    return Family(
        name="masked_lm",
        model_class=model_class[0] if isinstance(model_class, tuple) else model_class,
        read_config=lambda published: _read_config(kind, published),
        lora_targets={"all": _MATRICES, "published": _MATRICES},
        lm_head_modules=("cls", "lm_head", "head", "decoder"),
        supports_kv_cache=False,
        position_wise=(),
        lm_head=_head,
        first_position=lambda config: config.pad_token_id + 1 if kind in _FROM_PADDING else 0,
        mask_token_names=("[MASK]", "<mask>"),
        unused_tensors=(r".*pooler\..*", r"cls\.seq_relationship\..*", r".*position_ids"),
    )


def _read_config(kind: str, published: Mapping[str, Any]) -> PreTrainedConfig:
    require_fields(published, ("vocab_size", "hidden_size", "num_hidden_layers"), f"a {kind} checkpoint")
    require(
        published, {"is_decoder": False, "add_cross_attention": False}, f"a {kind} checkpoint is read as an encoder"
    )
    return CONFIG_MAPPING[kind](**stock_fields(published))


def _head(model: PreTrainedModel, states: Tensor) -> Tensor:
    for names in _HEADS:
        if all(hasattr(model, name) for name in names):
            for name in names:
                states = getattr(model, name)(states)
            return states
    raise CheckpointError(
        f"{type(model).__name__} keeps its head under a name that is not known here; known are "
        f"{', '.join(' + '.join(names) for names in _HEADS)} (BERT, RoBERTa, ModernBERT and kin); use one of those, or "
        "add the name in models/families/masked_lm.py"
    )
