"""Finds the mask, end-of-text and padding id of a checkpoint, and checks that they are valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from stipule.errors import CheckpointError
from stipule.models.families import Family, diffusion_section


def find_special_tokens(
    published_config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, family: Family, rows: int
) -> tuple[int, int, int]:
    """Mask, end-of-text and padding id; `rows` is the number of rows of the embedding.

    The first source that has an id wins: the recipe (in the `diffusion` section), config.json, the tokenizer, and for
    the mask the family's names of the mask token. Raises CheckpointError if an id is missing or invalid.
    """
    section = diffusion_section(published_config)
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise CheckpointError(
            f"the tokenizer has ids up to {largest}, but the embedding has {rows} rows, so some tokens have no "
            "embedding; were the two taken from different models? Use the tokenizer of this checkpoint, or enlarge the "
            "embedding (model.resize_token_embeddings) and save the model again"
        )
    mask_id = _mask_id(section, published_config, tokenizer, family)
    eos_id = _eos_id(section, published_config, tokenizer)
    pad_id = _first_given(published_config.get("pad_token_id"), tokenizer.pad_token_id, eos_id)
    for name, token_id in (("mask", mask_id), ("eos", eos_id), ("pad", pad_id)):
        if not isinstance(token_id, int) or not 0 <= token_id < min(rows, largest + 1):
            setting = f"model.{name}_id=ID or " if name != "pad" else ""
            raise CheckpointError(
                f"the {name} token id is {token_id!r}; it must be an id of the tokenizer (up to {largest}) and of the "
                f"embedding ({rows} rows); set {setting}{name}_token_id in config.json"
            )
    if mask_id in (eos_id, pad_id):
        raise CheckpointError(
            f"the mask id and the end / padding id are both {mask_id}; a masked diffusion model needs a mask token of "
            "its own; set model.mask_id=ID or mask_token_id in config.json"
        )
    if "eos_token_id" not in section and tokenizer.eos_token_id not in (None, eos_id):
        raise CheckpointError(
            f"eos_token_id is {eos_id} in config.json, but {tokenizer.eos_token_id} in the tokenizer; they must agree, "
            "or responses would never end; were the two files taken from different models? If not, set the id that "
            f"ends a response: model.eos_id={eos_id} or model.eos_id={tokenizer.eos_token_id}"
        )
    return mask_id, eos_id, pad_id


def ids_without_token(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[int]:
    """Rows of the LM head for which the tokenizer has no token: padding of the vocabulary, and gaps in it."""
    return sorted(set(range(rows)) - set(tokenizer.get_vocab().values()))


def _mask_id(
    section: Mapping[str, Any],
    published_config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
) -> Any:
    vocabulary = tokenizer.get_vocab()
    by_name = (vocabulary.get(name) for name in family.mask_token_names)
    return _first_given(
        section.get("mask_token_id"), published_config.get("mask_token_id"), tokenizer.mask_token_id, *by_name
    )


def _eos_id(section: Mapping[str, Any], published_config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Any:
    eos_id = _first_given(
        section.get("eos_token_id"),
        published_config.get("eos_token_id"),
        tokenizer.eos_token_id,
        published_config.get("sep_token_id"),
        tokenizer.sep_token_id,  # BERT ends a text with its separator
    )
    if isinstance(eos_id, list):  # causal chat models list several; the tokenizer's eos token ends a message
        return tokenizer.eos_token_id if tokenizer.eos_token_id in eos_id else eos_id[0]
    return eos_id


def _first_given(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
