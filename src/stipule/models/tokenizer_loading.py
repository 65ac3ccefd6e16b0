"""Loads a checkpoint's tokenizer without running the checkpoint's code."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import (
    TOKENIZER_MAPPING,
    get_tokenizer_config,
    tokenizer_class_from_name,
)
from transformers.utils import cached_file

from stipule.errors import CheckpointError
from stipule.models.weights import first_line

# The files that a tokenizer of transformers can be read from; tokenizer.json is whole, the others need a class.
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")


def load_tokenizer(path: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a hub name; it pads on the left. `config` is the network's.

    A class that transformers does not have (Dream's `DreamTokenizer`) comes with code, which is never run. Then the
    tokenizer is `tokenizer.json`, or else the stock class of the network reads the vocabulary: Dream's tokenizer is
    Qwen2's, as its network is. Raises CheckpointError, with the files that are there, if none can be read.
    """
    options = {"padding_side": "left", "trust_remote_code": False}
    try:
        settings = get_tokenizer_config(path)
        class_name = settings.get("tokenizer_class")
        is_stock = tokenizer_class_from_name(class_name) is not None if class_name else "auto_map" not in settings
        if is_stock:
            # Without a configuration AutoTokenizer would read config.json itself, and warn about an unknown type.
            tokenizer = AutoTokenizer.from_pretrained(path, config=config, **options)
        elif cached_file(path, "tokenizer.json", _raise_exceptions_for_missing_entries=False):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **options)
        else:
            tokenizer = _class_of_network(config).from_pretrained(path, **options)
    except Exception as cause:  # the tokenizers library raises a plain Exception for a damaged file
        folder = Path(path)
        files = [name for name in VOCABULARY_FILES if (folder / name).exists()] if folder.is_dir() else []
        reason = first_line(cause).rstrip(": ")
        raise CheckpointError(
            f"no readable tokenizer at {path!r} ({', '.join(files) or 'no vocabulary file'}): {reason}; put "
            "tokenizer.json and tokenizer_config.json beside config.json; if you trust the checkpoint's code, its own "
            "tokenizer writes both (save_pretrained)"
        ) from cause
    tokenizer.init_kwargs.pop("auto_map", None)  # it would name code that is not saved with the model
    return tokenizer


def _class_of_network(config: PreTrainedConfig) -> type[PreTrainedTokenizerBase]:
    """The tokenizer class that goes with the network's stock class. Raises CheckpointError if there is none."""
    for config_class in type(config).__mro__:
        tokenizer_class = TOKENIZER_MAPPING.get(config_class, None)
        if tokenizer_class is not None:
            return tokenizer_class
    raise CheckpointError(
        f"its class needs its own code, and transformers has no tokenizer class for {type(config).__name__}"
    )
