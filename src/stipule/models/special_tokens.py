"""Mask, end-of-text and padding id of a checkpoint, and whether they can be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from stipule.errors import CheckpointError
from stipule.models.families import DIFFUSION, Family


def find_special_tokens(
    published: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, family: Family, rows: int
) -> tuple[int, int, int]:
    """Mask, end-of-text and padding id; `rows` is the size of the embedding.

    The recipe's word counts first (`diffusion` section), then config.json, then the tokenizer, then the family's
    spelling of the mask token. Raises CheckpointError unless all three can be right.
    """
    words: Mapping[str, Any] = published.get(DIFFUSION) or {}
    top = max(tokenizer.get_vocab().values())
    if top >= rows:
        raise CheckpointError(
            f"the tokenizer has ids up to {top}, the embedding has {rows} rows; a text with such a token could not be "
            "read; were the two taken from different models? Use the tokenizer of this checkpoint, or enlarge the "
            "embedding (model.resize_token_embeddings) and save it anew"
        )
    mask = _mask(words, published, tokenizer, family)
    eos = _eos(words, published, tokenizer)
    pad = _first(published.get("pad_token_id"), tokenizer.pad_token_id, eos)
    for name, found in (("mask", mask), ("eos", eos), ("pad", pad)):
        if not isinstance(found, int) or not 0 <= found < min(rows, top + 1):
            setting = f"model.{name}_id=ID or " if name != "pad" else ""
            raise CheckpointError(
                f"the {name} token id is {found!r}; it must be an id of the tokenizer (up to {top}) and of the "
                f"embedding ({rows} rows); give {setting}{name}_token_id in config.json"
            )
    if mask in (eos, pad):
        raise CheckpointError(
            f"mask id and end / padding id are both {mask}; a masked diffusion model needs a mask token of its own; "
            "give model.mask_id=ID or mask_token_id in config.json"
        )
    if "eos_token_id" not in words and tokenizer.eos_token_id not in (None, eos):
        raise CheckpointError(
            f"config.json says eos_token_id = {eos}, the tokenizer {tokenizer.eos_token_id}; they must agree, or "
            "responses would never end; were the two files taken from different models? If not, say which ends a "
            f"response: model.eos_id={eos} or model.eos_id={tokenizer.eos_token_id}"
        )
    return mask, eos, pad


def _mask(
    words: Mapping[str, Any], published: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, family: Family
) -> Any:
    vocabulary = tokenizer.get_vocab()
    spelled = (vocabulary.get(word) for word in family.mask_token_names)
    return _first(words.get("mask_token_id"), published.get("mask_token_id"), tokenizer.mask_token_id, *spelled)


def _eos(words: Mapping[str, Any], published: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Any:
    found = _first(
        words.get("eos_token_id"),
        published.get("eos_token_id"),
        tokenizer.eos_token_id,
        published.get("sep_token_id"),
        tokenizer.sep_token_id,  # BERT ends a text with its separator
    )
    if isinstance(found, list):  # a causal chat model names several; the tokenizer knows which ends a turn
        return tokenizer.eos_token_id if tokenizer.eos_token_id in found else found[0]
    return found


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
