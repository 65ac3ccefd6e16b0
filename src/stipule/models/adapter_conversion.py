"""Renames published LoRA files from LLaDA's own module names to the stock ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stipule.errors import CheckpointError
from stipule.models.adapters import check_lora_options
from stipule.models.families import family_of
from stipule.models.families.llada import LLADA_BLOCK

_PEFT = "base_model.model."
_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.(lora_[AB])(?:\.default)?\.weight")
_LM_HEAD = re.compile(r"model\.transformer\.ff_out\.lora_[AB].*")
_STOCK = re.compile(r"(.+)\.(lora_[AB])(?:\.default)?\.weight")


def convert_adapter(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], published_config: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns adapter_config.json and the tensors under the names of the base's stock class.

    `published_config` is the base's config.json; only its sizes are used. Raises CheckpointError for an adapter of the
    LM head (LLaDA calls it `ff_out`, as it calls every down projection), an unknown key, a wrong shape, a lora_A
    without its lora_B, or settings that are not plain LoRA.
    """
    check_lora_options(config, folder)
    for option in ("rank_pattern", "alpha_pattern"):  # of the old names
        if config.get(option):
            raise CheckpointError(
                f"the adapter's {option} is {config[option]!r}; only an adapter of one rank and one alpha can be "
                "converted; merge the adapter with the code that trained it, and load the merged model"
            )
    shapes = _adaptable_matrices(published_config)
    converted: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, factor = _stock_module(key)
        if module not in shapes:
            raise CheckpointError(
                f"the adapter's key {key!r} matches no module of the base ({len(shapes)} matrices may be adapted); "
                f"allowed are LLaDA's own names ({', '.join(name for name in LLADA_BLOCK if 'norm' not in name)}) and "
                "stock names; check that --base is the model that the adapter was trained on"
            )
        rows, columns = shapes[module]
        rank = config["r"]
        needed = (rank, columns) if factor == "lora_A" else (rows, rank)
        if tuple(tensor.shape) != needed:
            raise CheckpointError(
                f"the adapter's key {key!r} has shape {tuple(tensor.shape)}; the base and rank {rank} need {needed}; "
                "check that --base is the model that the adapter was trained on"
            )
        converted[f"{_PEFT}{module}.{factor}.weight"] = tensor.contiguous()
    pairs = {key.rsplit(".lora_", 1)[0] for key in converted}
    incomplete = sorted(p for p in pairs if {f"{p}.lora_A.weight", f"{p}.lora_B.weight"} - set(converted))
    if incomplete or not pairs:
        raise CheckpointError(
            f"the adapter has lora_A without lora_B, or the reverse, e.g. for {incomplete[0]}; the file is incomplete; "
            "copy it again"
            if incomplete
            else "the adapter has no tensors; give the folder that contains adapter_model.safetensors"
        )
    modules = sorted({pair.rsplit(".", 1)[1] for pair in pairs})
    # Dropout is set by the recipe, not by the file.
    return {**config, "target_modules": modules, "exclude_modules": None, "lora_dropout": 0.0}, converted


def _stock_module(key: str) -> tuple[str, str]:
    """The stock name of the adapted module, and `lora_A` or `lora_B`; the key itself and "" if it matches nothing."""
    name = key.removeprefix(_PEFT)
    if _LM_HEAD.fullmatch(name) or name.startswith("lm_head."):
        raise CheckpointError(
            f"the adapter's key {key!r} adapts the LM head; LLaDA calls it ff_out, as every down projection, so a "
            "target list with ff_out includes it; adapters of the LM head are not supported; merge the adapter with "
            "the code that trained it, and load the merged model"
        )
    if block := _BLOCK.fullmatch(name):
        layer, published, factor = block.groups()
        return f"model.layers.{layer}.{LLADA_BLOCK.get(published, published)}", factor
    if stock := _STOCK.fullmatch(name):
        return stock[1], stock[2]
    return name, ""


def _adaptable_matrices(published_config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Every matrix of the base that may have an adapter, with its shape."""
    family = family_of(published_config)
    with torch.device("meta"):
        network = family.model_class(family.read_config(published_config))
    return {
        name: (module.out_features, module.in_features)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in family.lora_targets["all"]
    }
