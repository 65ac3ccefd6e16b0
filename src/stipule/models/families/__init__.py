"""Model families, chosen by the fields of `config.json`, never by a path.

This package has no modelling code and runs no code of a checkpoint: a published model is a stock transformers class
under other names (docs/models.md lists the families). A causal checkpoint becomes a diffusion model only if the recipe
or the `diffusion` section of its config says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stipule.errors import CheckpointError
from stipule.models.families.block import block_length_of, check_attention
from stipule.models.families.family import (
    DIFFUSION,
    Family,
    diffusion_section,
    max_positions,
    output_embeddings,
    stock_fields,
    without_dropout,
)
from stipule.models.families.llada import LLADA, write_llada_config
from stipule.models.families.masked_lm import is_masked_lm, masked_lm_family
from stipule.models.families.qwen import A2D, DREAM, FAST_DLLM_V2, LLADA_MOE, SDAR, write_sdar_config

__all__ = [
    "DIFFUSION",
    "NAMES",
    "Family",
    "check_attention",
    "diffusion_section",
    "family_of",
    "max_positions",
    "output_embeddings",
    "stock_fields",
    "without_dropout",
    "write_llada_config",
    "write_sdar_config",
]

NAMES = ("llada", "dream", "llada_moe", "sdar", "fast_dllm_v2", "a2d", "masked_lm")
# dllm's model types of converted causal models: `a2d-llama`, `a2d-qwen2`, `a2d-qwen3`.
_A2D_PREFIX = "a2d-"


def family_of(published_config: Mapping[str, Any]) -> Family:
    """The family of a published `config.json`: from its `diffusion` section if it has one, else from its `model_type`.

    Raises CheckpointError for an unsupported type, a family that does not fit the type, a `shift_logits` or
    `block_length` that the family does not allow, or an unknown key in the `diffusion` section.
    """
    model_type = str(published_config.get("model_type"))
    section = diffusion_section(published_config)
    family = _family_of_type(model_type, published_config, section.get("family"))
    requested = section.get("family", family.name)
    if requested != family.name:
        raise CheckpointError(
            f"model.family is {requested!r}, but config.json has model_type = {model_type!r}, which is of family "
            f"{family.name!r}; leave model.family out, or set model.path to a checkpoint of family {requested!r}"
        )
    shift_logits = section.get("shift_logits")
    if shift_logits is not None and family.name != "a2d" and shift_logits != family.shift_logits:
        raise CheckpointError(
            f"model.shift_logits is {shift_logits}, but logits of family {family.name} are "
            f"{'always shifted by one' if family.shift_logits else 'never shifted'}; only a2d allows both; leave "
            "model.shift_logits out"
        )
    return replace(
        family,
        shift_logits=family.shift_logits if shift_logits is None else shift_logits,
        block_length=block_length_of(family, published_config),
    )


def _family_of_type(model_type: str, published_config: Mapping[str, Any], requested: str | None) -> Family:
    if model_type in ("llada", "mmada", "lladamoe", "llada_moe"):
        # LLaDA-MoE was published with LLaDA's model type; only its config has sizes of experts.
        return LLADA_MOE if "expert_intermediate_size" in published_config else LLADA
    if model_type.lower() == "dream":
        return DREAM
    if model_type in SDAR:
        return SDAR[model_type]
    if model_type.lower() == "fast_dllm_qwen":
        return FAST_DLLM_V2
    if model_type.startswith(_A2D_PREFIX) and model_type.removeprefix(_A2D_PREFIX) in A2D:
        return A2D[model_type.removeprefix(_A2D_PREFIX)]
    if model_type in A2D:
        if requested is not None:
            return A2D[model_type]
        raise CheckpointError(
            f"config.json has model_type = {model_type!r}: a causal language model; to use it as a diffusion model "
            "set model.family=a2d, model.mask_id=ID of a token that no text has, and model.shift_logits=true if it "
            "still predicts the next token"
        )
    if is_masked_lm(model_type):
        return masked_lm_family(model_type)
    custom_code = (
        f"; it needs its own code ({', '.join(map(str, published_config['auto_map'].values()))}), but code from a "
        "checkpoint is never run here"
        if isinstance(published_config.get("auto_map"), Mapping)
        else ""
    )
    raise CheckpointError(
        f"config.json has model_type = {model_type!r}{custom_code}; supported are llada (dense and MoE), Dream, "
        f"SDAR, Fast-dLLM v2, {', '.join(A2D)} with model.family=a2d, and masked language models such as bert, "
        "roberta, modernbert; see docs/models.md, and CONTRIBUTING.md for how to add a family"
    )
