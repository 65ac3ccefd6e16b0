"""LoRA: adds adapters to a network, reads them with every key checked, and records the base they were trained on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
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
from stipule.rng import generator_devices

if TYPE_CHECKING:
    from peft import LoraConfig

WEIGHTS = "adapter_model.safetensors"
ADAPTER_INFO = "stipule.json"  # beside an adapter: the base it was trained on
# The options of peft with which an adapter is W + scale * B A on chosen matrices of the layers. Every other option must
# be off: rollouts with merged adapters, scores and the reference would be different policies.
PLAIN_LORA_OPTIONS = frozenset({
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters",
})  # fmt: skip
# Where an adapter comes from; no effect on what it computes. The initial weights are replaced by the saved ones.
DESCRIPTIVE_OPTIONS = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "inference_mode", "qalora_group_size",
    "megatron_core", "runtime_config",
})  # fmt: skip
# Initial weights that leave the base unchanged; others (PiSSA, OLoRA, LoftQ, CorDA) subtract the adapter from it.
INITIAL_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal")


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
    # peft draws initial weights from the global generator; it is restored afterwards.
    with torch.random.fork_rng(generator_devices(model.device)):
        torch.random.manual_seed(seed)
        return _add_adapters(model, adapter_config(family, lora, base))


def _add_adapters(model: PreTrainedModel, config: LoraConfig) -> torch.nn.Module:
    from peft import get_peft_model  # takes seconds to import, and full fine-tuning does not need it

    with warnings.catch_warnings():
        # peft reads an attribute that transformers has deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # It also takes the path that the network was read from for the base's name; save_policy writes the given name.
        warnings.filterwarnings("ignore", message=".*`base_model_name_or_path` was renamed", category=UserWarning)
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


def read_adapter_options(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises CheckpointError if it is damaged, names no base, or is not of plain LoRA."""
    try:
        options = json.loads((folder / "adapter_config.json").read_text())
        if not isinstance(options["base_model_name_or_path"], str):
            raise KeyError("base_model_name_or_path")
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise CheckpointError(
            f"the adapter at {str(folder)!r} cannot be read: {first_line(cause)}; adapter_config.json must be complete "
            "and name its base in base_model_name_or_path; copy it again"
        ) from cause
    check_lora_options(options, folder)
    return options


def check_lora_options(options: Mapping[str, Any], folder: Path) -> None:
    """Raises CheckpointError, naming the option, if an adapter_config.json is not of plain LoRA.

    Options that the installed peft does not have are treated alike: they must be off.
    """
    allowed = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": INITIAL_WEIGHTS, "revision": ("main",)}
    for option, value in options.items():
        if option in PLAIN_LORA_OPTIONS | DESCRIPTIVE_OPTIONS or not value or value in allowed.get(option, ()):
            continue
        raise CheckpointError(
            f"the adapter at {str(folder)!r} has {option} = {value!r}; only plain LoRA is supported, W + scale * B A "
            f"({', '.join(sorted(PLAIN_LORA_OPTIONS))} may be set); merge the adapter with peft (merge_and_unload), "
            "and load the merged model"
        )


def _check_adapted_modules(adapted: Any, family: Family, folder: Path) -> None:
    """Raises CheckpointError for an adapter on anything but a matrix of a layer, or the family's stacked experts.

    The LM head is computed in tiles from its matrix alone, and its matrix may be that of the embedding.
    """
    from peft.tuners.lora import LoraLayer

    lm_head = adapted.get_base_model().get_output_embeddings()
    for name, module in adapted.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        parameter = getattr(module, "parameter_name", None)  # of an adapter on a bare parameter
        if parameter is None:
            supported = isinstance(module.get_base_layer(), torch.nn.Linear) and module is not lm_head
        else:
            supported = any(target.endswith(f".{parameter}") for target in family.lora_parameters)
        if not supported:
            option = "target_modules" if parameter is None else "target_parameters"
            raise CheckpointError(
                f"the adapter at {str(folder)!r} adapts {name.removeprefix('base_model.model.')} ({option}); only "
                "matrices of the layers may be adapted, not the LM head, the embedding or a bare parameter; merge the "
                "adapter with peft (merge_and_unload), and load the merged model"
            )


def load_adapter(model: PreTrainedModel, folder: Path, family: Family) -> torch.nn.Module:
    """The network with the adapters of a folder.

    Raises CheckpointError for an adapter that is not plain LoRA on matrices of the layers, and unless the keys of the
    file and the adapter parameters of the network are the same: peft skips unknown keys, and the policy would be the
    base without any warning.
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
    config.init_lora_weights = True  # peft would use the base to compute others; the saved weights replace them
    try:
        adapted = _add_adapters(model, config)
    except ValueError as cause:
        raise CheckpointError(f"the adapter at {str(folder)!r} does not fit: {first_line(cause)}; {hint}") from cause
    _check_adapted_modules(adapted, family, folder)
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
