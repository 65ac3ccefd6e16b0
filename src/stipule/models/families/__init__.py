"""Model families, chosen by what `config.json` says and never by a path.

There is no modelling code here and no remote code: a published model is a stock transformers class under other names
(docs/models.md lists the families). A causal checkpoint becomes a diffusion model only when the recipe or the
config's own `diffusion` section says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stipule.errors import CheckpointError
from stipule.models.families.family import DIFFUSION, Family, output_embeddings, stock_fields, without_dropout
from stipule.models.families.llada import LLADA, write_llada_config
from stipule.models.families.masked_lm import is_masked_lm, masked_lm_family
from stipule.models.families.qwen import DREAM, LLADA_MOE, TURNED

__all__ = [
    "DIFFUSION",
    "NAMES",
    "Family",
    "family_of",
    "output_embeddings",
    "stock_fields",
    "without_dropout",
    "write_llada_config",
]

NAMES = ("llada", "dream", "llada_moe", "a2d", "masked_lm")
# Another project's name for a turned causal model: `a2d-llama`, `a2d-qwen2`, `a2d-qwen3`.
_TURNED_ALREADY = "a2d-"


def family_of(published: Mapping[str, Any]) -> Family:
    """The family of a published `config.json`: of its `diffusion` section if it has one, else of its `model_type`.

    Raises CheckpointError for a type that is not supported, a family that the type cannot be, or a shift that is not
    the user's to choose.
    """
    kind = str(published.get("model_type"))
    words = published.get(DIFFUSION) or {}
    found = _by_type(kind, published, words.get("family"))
    asked = words.get("family", found.name)
    if asked != found.name:
        raise CheckpointError(
            f"model.family is {asked!r}, but config.json says model_type = {kind!r}, which is of family "
            f"{found.name!r}; leave model.family out, or give the checkpoint that was meant"
        )
    shift = words.get("shift")
    if shift is not None and found.name != "a2d" and shift != found.shift_logits:
        raise CheckpointError(
            f"model.shift_logits is {shift}, but logits of family {found.name} are always "
            f"{'shifted by one' if found.shift_logits else 'in place'}; leave model.shift_logits out; only a2d has both"
        )
    return found if shift is None else replace(found, shift_logits=shift)


def _by_type(kind: str, published: Mapping[str, Any], asked: str | None) -> Family:
    if kind in ("llada", "mmada", "lladamoe", "llada_moe"):
        # LLaDA-MoE was published under LLaDA's own type; its experts give it away.
        return LLADA_MOE if "expert_intermediate_size" in published else LLADA
    if kind.lower() == "dream":
        return DREAM
    if kind.startswith(_TURNED_ALREADY) and kind.removeprefix(_TURNED_ALREADY) in TURNED:
        return TURNED[kind.removeprefix(_TURNED_ALREADY)]
    if kind in TURNED:
        if asked is not None:
            return TURNED[kind]
        raise CheckpointError(
            f"config.json says model_type = {kind!r}: a causal language model; to use it as a diffusion model set "
            "model.family=a2d, model.mask_id=ID of a token that no text has, and model.shift_logits=true if it keeps "
            "predicting the next token"
        )
    if is_masked_lm(kind):
        return masked_lm_family(kind)
    remote = (
        f"; it asks for code of its own ({', '.join(map(str, published['auto_map'].values()))}), and code from a "
        "checkpoint is never run here"
        if isinstance(published.get("auto_map"), Mapping)
        else ""
    )
    raise CheckpointError(
        f"config.json says model_type = {kind!r}{remote}; supported are llada (dense and MoE), Dream, "
        f"{', '.join(TURNED)} with model.family=a2d, and masked language models such as bert, roberta, modernbert; see "
        "docs/models.md, and CONTRIBUTING.md for how to add a family"
    )
