"""LoRA: putting adapters on a network, reading them with every key accounted for, and what they were trained on."""

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
ADAPTER_INFO = "stipule.json"  # beside an adapter: what it was trained on


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters on the attention and MLP matrices, never on the LM head (table 8)."""

    rank: int = 128  # table 8
    alpha: int = 64  # table 8
    targets: Literal["all", "published"] = "all"  # "published": the four that d1's target list really hits on LLaDA
    # Of the adapters' input, in the update pass alone; rollouts, scores of the old policy and evaluation have none.
    # Published code has 0.05 in all of them, with other noise in each (docs/decisions.md).
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise RecipeError(f"model.lora has rank {self.rank} and alpha {self.alpha}; both must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise RecipeError(
                f"model.lora.dropout is {self.dropout}; it must lie in [0, 1); try 0, or 0.05 as published"
            )


def new_adapter(model: PreTrainedModel, family: Family, lora: LoRA, base: str, seed: int) -> torch.nn.Module:
    """The network with fresh adapters, which change nothing yet."""
    if lora.dropout and family.lora_parameters:
        raise RecipeError(
            f"model.lora.dropout is {lora.dropout}, but adapters on stacked experts ({family.name}) have no dropout; "
            "set model.lora.dropout=0"
        )
    with torch.random.fork_rng():  # peft draws its first weights from the global generator; put it back after
        torch.random.manual_seed(seed)
        return _wrapped(model, adapter_config(family, lora, base))


def _wrapped(model: PreTrainedModel, config: LoraConfig) -> torch.nn.Module:
    from peft import get_peft_model  # seconds to import, and full fine-tuning needs none of it

    with warnings.catch_warnings():  # peft asks transformers by a name that is on its way out
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(model, config)  # type: ignore[return-value]


def adapter_config(family: Family, lora: LoRA, base: str) -> LoraConfig:
    """The adapter's configuration by the family's own module names, heads left out."""
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

    Raises CheckpointError unless every key of the file finds its place and every place its key: peft itself passes
    over what it does not know, and the policy would quietly be the base.
    """
    from peft import LoraConfig, set_peft_model_state_dict

    try:
        config = LoraConfig.from_pretrained(str(folder))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError, TypeError) as cause:
        raise CheckpointError(
            f"the adapter at {str(folder)!r} cannot be read: {first_line(cause)}; adapter_config.json and {WEIGHTS} "
            "must be whole; copy them again"
        ) from cause
    hint = (
        "is it an adapter for another base? One trained by d1's, SPG's or wd1's code is renamed by: "
        f"stipule convert-adapter {folder} OUT --base MODEL"
    )
    config.inference_mode = False
    try:
        adapted = _wrapped(model, config)
    except ValueError as cause:
        raise CheckpointError(f"the adapter at {str(folder)!r} does not fit: {first_line(cause)}; {hint}") from cause
    places = {n.replace(".default", ""): p for n, p in adapted.named_parameters() if ".lora_" in n}
    wrong = {
        "keys without a place": sorted(set(tensors) - set(places)),
        "places without a key": sorted(set(places) - set(tensors)),
        "keys of another shape": sorted(k for k in set(tensors) & set(places) if tensors[k].shape != places[k].shape),
    }
    if any(wrong.values()):
        said = "; ".join(f"{len(keys)} {what}, e.g. {keys[0]}" for what, keys in wrong.items() if keys)
        raise CheckpointError(f"the adapter at {str(folder)!r} does not fit its base: {said}; {hint}")
    set_peft_model_state_dict(adapted, tensors)
    return adapted


def read_adapter_info(folder: Path) -> dict[str, Any]:
    """What an adapter was trained on (base fingerprint, precision, `diffusion` section); empty where nobody said."""
    place = folder / ADAPTER_INFO
    return json.loads(place.read_text()) if place.exists() else {}


def write_adapter_info(folder: Path, record: dict[str, Any]) -> None:
    """Says beside an adapter what it was trained on."""
    (folder / ADAPTER_INFO).write_text(json.dumps(record, indent=2) + "\n")


def check_base(record: dict[str, Any], fingerprint: str, precision: str, folder: Path, base: str) -> None:
    """Raises CheckpointError if the base is not the one that the adapter was trained on.

    Fingerprints of different precisions cannot be compared and are not.
    """
    trained_on = record.get("base_fingerprint")
    if trained_on and record.get("precision") == precision and trained_on != fingerprint:
        raise CheckpointError(
            f"the adapter at {str(folder)!r} was trained on a base with fingerprint {trained_on} "
            f"({record.get('base')}), but {base!r} has {fingerprint}; give the base that it was trained on: "
            "base_model_name_or_path in adapter_config.json"
        )
