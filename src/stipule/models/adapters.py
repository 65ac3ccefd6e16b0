"""LoRA: adds adapters to a network, reads them with every key checked, and records the base they were trained on."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from stipule.errors import CheckpointError, RecipeError
from stipule.models.families import Family
from stipule.models.weights import first_line

if TYPE_CHECKING:
    from peft import LoraConfig

WEIGHTS = "adapter_model.safetensors"
ADAPTER_INFO = "stipule.json"  # beside an adapter: the base it was trained on


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters on the attention and MLP matrices, never on the LM head (table 8)."""

    rank: int = 128  # table 8
    alpha: int = 64  # table 8
    targets: Literal["all", "published"] = "all"  # "published": the four that d1's target list matches on LLaDA
    # Dropout of the adapters' input in the update pass only; rollouts, old log-probabilities and evaluation have none.
    # Published code applies 0.05 in all of them, with different noise in each (docs/decisions.md).
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise RecipeError(
                f"model.lora has rank {self.rank} and alpha {self.alpha}; both must be 1 or more; try 128 and 64"
            )
        if not 0 <= self.dropout < 1:
            raise RecipeError(
                f"model.lora.dropout is {self.dropout}; it must lie in [0, 1); try 0, or 0.05 as published"
            )


def new_adapter(model: PreTrainedModel, family: Family, lora: LoRA, base: str, seed: int) -> torch.nn.Module:
    """The network with new adapters. Their product is 0, so they do not change the logits yet."""
    if lora.dropout and family.lora_parameters:
        raise RecipeError(
            f"model.lora.dropout is {lora.dropout}, but adapters on stacked experts ({family.name}) have no dropout; "
            "set model.lora.dropout=0"
        )
    with torch.random.fork_rng():  # peft draws initial weights from the global generator; it is restored afterwards
        torch.random.manual_seed(seed)
        return _add_adapters(model, adapter_config(family, lora, base))


def _add_adapters(model: PreTrainedModel, config: LoraConfig) -> torch.nn.Module:
    from peft import get_peft_model  # takes seconds to import, and full fine-tuning does not need it

    with warnings.catch_warnings():  # peft reads an attribute that transformers has deprecated
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # A bundled name is resolved to its folder; check_base compares the base by its fingerprint, not by its name.
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path` was renamed")
        return get_peft_model(model, config)  # type: ignore[return-value]


def adapter_config(family: Family, lora: LoRA, base: str) -> LoraConfig:
    """peft's configuration with the family's module names, without the LM head."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(family.lora_targets[lora.targets]),
        target_parameters=list(family.lora_parameters) if lora.targets == "all" and family.lora_parameters else None,
        exclude_modules=rf"({'|'.join(family.lm_head_modules)})(\..*)?",
        lora_dropout=lora.dropout,
        base_model_name_or_path=base,
    )


def load_adapter(model: PreTrainedModel, folder: Path) -> torch.nn.Module:
    """The network with the adapters of a folder.

    Raises CheckpointError unless the keys of the file and the adapter parameters of the network are the same: peft
    skips unknown keys, and the policy would be the base without any warning.
    """
    from peft import LoraConfig, set_peft_model_state_dict

    try:
        config = LoraConfig.from_pretrained(str(folder))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError, TypeError) as cause:
        raise CheckpointError(
            f"the adapter at {str(folder)!r} cannot be read: {first_line(cause)}; adapter_config.json and {WEIGHTS} "
            "must be complete; copy them again"
        ) from cause
    hint = (
        "is it an adapter for another base? Adapters trained by the code of d1, SPG or wd1 must be renamed first: "
        f"stipule convert-adapter {folder} OUT --base MODEL"
    )
    config.inference_mode = False
    try:
        adapted = _add_adapters(model, config)
    except ValueError as cause:
        raise CheckpointError(f"the adapter at {str(folder)!r} does not fit: {first_line(cause)}; {hint}") from cause
    parameters = {n.replace(".default", ""): p for n, p in adapted.named_parameters() if ".lora_" in n}
    shared = set(tensors) & set(parameters)
    mismatches = {
        "keys without a parameter": sorted(set(tensors) - set(parameters)),
        "parameters without a key": sorted(set(parameters) - set(tensors)),
        "keys of another shape": sorted(key for key in shared if tensors[key].shape != parameters[key].shape),
    }
    if any(mismatches.values()):
        details = "; ".join(f"{len(keys)} {kind}, e.g. {keys[0]}" for kind, keys in mismatches.items() if keys)
        raise CheckpointError(f"the adapter at {str(folder)!r} does not fit its base: {details}; {hint}")
    set_peft_model_state_dict(adapted, tensors)
    return adapted


def read_adapter_info(folder: Path) -> dict[str, Any]:
    """The base an adapter was trained on (fingerprint, precision, `diffusion` section); empty if not recorded."""
    path = folder / ADAPTER_INFO
    return json.loads(path.read_text()) if path.exists() else {}


def write_adapter_info(folder: Path, info: dict[str, Any]) -> None:
    """Writes beside an adapter which base it was trained on."""
    (folder / ADAPTER_INFO).write_text(json.dumps(info, indent=2) + "\n")


def check_base(info: dict[str, Any], fingerprint: str, precision: str, folder: Path, base: str) -> None:
    """Raises CheckpointError if the base is not the one that the adapter was trained on.

    Fingerprints of different precisions differ for the same base, so they are not compared.
    """
    trained_on = info.get("base_fingerprint")
    if trained_on and info.get("precision") == precision and trained_on != fingerprint:
        raise CheckpointError(
            f"the adapter at {str(folder)!r} was trained on a base with fingerprint {trained_on} "
            f"({info.get('base')}), but {base!r} has {fingerprint}; set base_model_name_or_path in "
            "adapter_config.json to the base that it was trained on"
        )
