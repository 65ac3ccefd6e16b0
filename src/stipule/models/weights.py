"""Reads the weights of a network: only safetensors, complete, and with the names that the configuration needs."""

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

from stipule.errors import CheckpointError, out_of_memory_message
from stipule.models.families import family_of, without_dropout
from stipule.models.versions import check_quantiser

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class LoadOptions(Protocol):
    """How the weights are stored: the fields of a recipe's `model` section that are used here."""

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
    path: str, published_config: Mapping[str, Any], options: LoadOptions, device: torch.device | str
) -> PreTrainedModel:
    """The network in evaluation mode. A pickle checkpoint can run code and is never opened."""
    family = family_of(published_config)
    check_files(path)
    placement: dict[str, Any] = {}
    if options.quantize:
        check_quantiser()
        from transformers import BitsAndBytesConfig

        placement["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, options.dtype),
        )
    if options.quantize or options.device_map:
        placement["device_map"] = options.device_map or {"": str(device)}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # unused and missing tensors are checked below, per family
    try:
        model, report = family.model_class.from_pretrained(
            path,
            config=without_dropout(family.read_config(published_config)),
            dtype=getattr(torch, options.dtype),
            attn_implementation=options.attention,
            use_safetensors=True,
            output_loading_info=True,
            **placement,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, ImportError) as cause:
        if out_of_memory_message(cause):
            raise
        raise CheckpointError(
            f"the weights at {path!r} cannot be read: {first_line(cause)}; they must be complete safetensors files "
            "that fit config.json; copy or download them again"
        ) from cause
    finally:
        transformers_logging.set_verbosity(verbosity)
    unexpected = [k for k in report["unexpected_keys"] if not any(re.fullmatch(p, k) for p in family.unused_tensors)]
    mismatches = {"missing": sorted(report["missing_keys"]), "unexpected": sorted(unexpected)}
    examples = {kind: names[:3] for kind, names in mismatches.items() if names}
    if examples:
        raise CheckpointError(
            f"the weights at {path!r} do not fit config.json: {examples}; all tensors of config.json's model are "
            "needed, and no others; copy or download the checkpoint again"
        )
    if options.gradient_checkpointing:
        _enable_gradient_checkpointing(model)
    return model if placement else model.to(device)  # type: ignore[arg-type]


def _enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    kwargs = {"use_reentrant": False}  # the reentrant version needs inputs with gradients, and runs backward twice
    try:
        if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.2x on
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    except ValueError as cause:
        raise CheckpointError(
            f"model.gradient_checkpointing is true, but {first_line(cause)}; set it to false"
        ) from cause


def check_files(path: str) -> None:
    """Raises CheckpointError for a folder whose weights are pickles, or whose shards are missing or truncated."""
    folder = Path(path)
    if not folder.is_dir():  # a hub name: transformers checks what it downloads
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        convert = (
            '; to convert a file that you trust: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{pickles[0]}', weights_only=True), 'model.safetensors')\""
            if pickles
            else ""
        )
        raise CheckpointError(
            f"{path!r} contains {', '.join(pickles) or 'no weights'}; weights are read only from safetensors files "
            f"(a pickle can run code){convert}"
        )
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
    missing = sorted(shards - {file.name for file in files})
    if missing:
        raise CheckpointError(
            f"{path!r} lacks {', '.join(missing[:3])} of {len(shards)} shards that its index lists; copy or download "
            f"them again, e.g. hf download NAME {missing[0]}"
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):  # reads the header, which contains the length of the file
                pass
        except (OSError, SafetensorError) as cause:
            raise CheckpointError(
                f"the weights at {str(file)!r} cannot be read: {first_line(cause)}; the file is truncated or damaged; "
                "copy or download it again"
            ) from cause


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
