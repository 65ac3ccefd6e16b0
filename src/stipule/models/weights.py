"""Reading a network's weights: safetensors alone, whole, and fitting their configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from stipule.errors import CheckpointError
from stipule.models.families import family_of, without_dropout
from stipule.models.versions import check_quantiser

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class LoadOptions(Protocol):
    """How the weights are to be held: the fields of a recipe's `model` section that matter here."""

    @property
    def dtype(self) -> str: ...
    @property
    def attention(self) -> str: ...
    @property
    def quantize(self) -> str | None: ...
    @property
    def device_map(self) -> str | None: ...
    @property
    def gradient_checkpointing(self) -> bool: ...


def load_network(
    place: str, published: Mapping[str, Any], choice: LoadOptions, device: torch.device | str
) -> PreTrainedModel:
    """The network alone, in evaluation mode. A pickle checkpoint can run code and is never opened."""
    family = family_of(published)
    check_files(place)
    held: dict[str, Any] = {}
    if choice.quantize:
        check_quantiser()
        from transformers import BitsAndBytesConfig

        held["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=choice.quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, choice.dtype),
        )
    if choice.quantize or choice.device_map:
        held["device_map"] = choice.device_map or {"": str(device)}
    loud = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what does not fit is judged below, by the family's own list
    try:
        model, report = family.model_class.from_pretrained(
            place,
            config=without_dropout(family.read_config(published)),
            dtype=getattr(torch, choice.dtype),
            attn_implementation=choice.attention,
            use_safetensors=True,
            output_loading_info=True,
            **held,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, ImportError) as cause:
        raise CheckpointError(
            f"the weights at {place!r} cannot be read: {first_line(cause)}; they must be complete safetensors files "
            "that fit config.json; copy or download them again"
        ) from cause
    finally:
        transformers_logging.set_verbosity(loud)
    strange = [key for key in report["unexpected_keys"] if not any(re.fullmatch(p, key) for p in family.unused_tensors)]
    unfit = {"missing": sorted(report["missing_keys"]), "unexpected": sorted(strange)}
    lost = {name: keys[:3] for name, keys in unfit.items() if keys}
    if lost:
        raise CheckpointError(f"the weights at {place!r} do not fit config.json: {lost}; is the checkpoint complete?")
    if choice.gradient_checkpointing:
        _checkpoint_activations(model)
    return model if held else model.to(device)  # type: ignore[arg-type]


def _checkpoint_activations(model: PreTrainedModel) -> None:
    plain = {"use_reentrant": False}  # the other way needs inputs that want gradients, and runs backward twice
    try:
        if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.2x on
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=plain)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=plain)
    except ValueError as cause:
        raise CheckpointError(
            f"model.gradient_checkpointing is true, but {first_line(cause)} set it to false"
        ) from cause


def check_files(place: str) -> None:
    """Raises CheckpointError for a folder whose weights are pickles, or whose shards are missing or cut short."""
    folder = Path(place)
    if not folder.is_dir():  # a hub name: transformers checks what it downloads
        return
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        convert = (
            '; to convert one that you trust: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{pickles[0]}', weights_only=True), 'model.safetensors')\""
            if pickles
            else ""
        )
        raise CheckpointError(
            f"{place!r} holds {', '.join(pickles) or 'no weights'}; weights are read from safetensors files alone "
            f"(a pickle can run code){convert}"
        )
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
    missing = sorted(shards - {p.name for p in found})
    if missing:
        raise CheckpointError(
            f"{place!r} lacks {', '.join(missing[:3])} of {len(shards)} shards that its index names; copy or download "
            f"them again, e.g. hf download NAME {missing[0]}"
        )
    for file in found:
        try:
            with safe_open(file, framework="pt"):  # reads the header, which knows how long the file must be
                pass
        except (OSError, SafetensorError) as cause:
            raise CheckpointError(
                f"the weights at {str(file)!r} cannot be read: {first_line(cause)}; the file is cut short or damaged; "
                "copy or download it again"
            ) from cause


def first_line(cause: BaseException) -> str:
    """The first line of an error's message, or its name."""
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
