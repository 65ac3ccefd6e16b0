"""Published LoRA files on LLaDA's own module names, renamed to the stock ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stipule.errors import CheckpointError
from stipule.models.families import family_of
from stipule.models.families.llada import LLADA_BLOCK

_PEFT = "base_model.model."
_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.(lora_[AB])(?:\.default)?\.weight")
_HEAD = re.compile(r"model\.transformer\.ff_out\.lora_[AB].*")
_STOCK = re.compile(r"(.+)\.(lora_[AB])(?:\.default)?\.weight")
# Settings of peft that renaming alone would not carry over.
_PLAIN = {
    "peft_type": "LORA", "bias": "none", "use_dora": False, "modules_to_save": None, "layer_replication": None,
    "rank_pattern": {}, "alpha_pattern": {}, "trainable_token_indices": None, "fan_in_fan_out": False,
}  # fmt: skip


def convert_adapter(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], published: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """adapter_config.json and tensors under the names of the base's stock class.

    `published` is the base's config.json; only its sizes are used. Raises CheckpointError for an adapter of the LM
    head (LLaDA calls it `ff_out`, as it calls every down projection), a key that has no home, a shape that is not the
    base's, half a pair, or settings that are more than a plain LoRA.
    """
    for field, plain in _PLAIN.items():
        given = config.get(field, plain)
        if given != plain and not (not plain and not given):
            raise CheckpointError(
                f"the adapter's {field} is {given!r}; only plain LoRA is converted ({field} {plain!r}); merge it with "
                "the code that trained it, and load the merged model"
            )
    shapes = _places(published)
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, part = _home(key)
        if module not in shapes:
            raise CheckpointError(
                f"the adapter's key {key!r} has no home in the base ({len(shapes)} matrices may be adapted); known are "
                f"LLaDA's own names ({', '.join(name for name in LLADA_BLOCK if 'norm' not in name)}) and stock ones; "
                "is --base the model that it was trained on?"
            )
        rows, columns = shapes[module]
        rank = config["r"]
        needed = (rank, columns) if part == "lora_A" else (rows, rank)
        if tuple(tensor.shape) != needed:
            raise CheckpointError(
                f"the adapter's key {key!r} has shape {tuple(tensor.shape)}, the base and rank {rank} need {needed}; "
                "is --base the model that it was trained on?"
            )
        found[f"{_PEFT}{module}.{part}.weight"] = tensor.contiguous()
    pairs = {key.rsplit(".lora_", 1)[0] for key in found}
    halves = sorted(p for p in pairs if {f"{p}.lora_A.weight", f"{p}.lora_B.weight"} - set(found))
    if halves or not pairs:
        raise CheckpointError(
            f"the adapter lacks half a pair, e.g. of {halves[0]}; the file is not whole; copy it again"
            if halves
            else "the adapter holds no tensors; give the folder with adapter_model.safetensors"
        )
    modules = sorted({pair.rsplit(".", 1)[1] for pair in pairs})
    # Dropout is the recipe's to choose here, not the file's.
    return {**config, "target_modules": modules, "exclude_modules": None, "lora_dropout": 0.0}, found


def _home(key: str) -> tuple[str, str]:
    name = key.removeprefix(_PEFT)
    if _HEAD.fullmatch(name) or name.startswith("lm_head."):
        raise CheckpointError(
            f"the adapter's key {key!r} adapts the LM head, which is called ff_out like every down projection and was "
            "hit by a target list that names ff_out; heads carry no adapter here; merge it with the code that trained "
            "it, and load the merged model"
        )
    if block := _BLOCK.fullmatch(name):
        layer, published, part = block.groups()
        return f"model.layers.{layer}.{LLADA_BLOCK.get(published, published)}", part
    if stock := _STOCK.fullmatch(name):
        return stock[1], stock[2]
    return name, ""


def _places(published: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Every matrix of the base that may carry an adapter, with its shape."""
    family = family_of(published)
    with torch.device("meta"):
        network = family.model_class(family.read_config(published))
    return {
        name: (module.out_features, module.in_features)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in family.lora_targets["all"]
    }
