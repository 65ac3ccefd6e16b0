"""Loads a policy from a folder or a hub name, and saves a policy to a folder in the published layout."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from stipule.checksums import verify_checksums
from stipule.errors import CheckpointError, RecipeError
from stipule.models.adapters import (
    LoRA,
    check_base,
    load_adapter,
    new_adapter,
    read_adapter_info,
    read_adapter_options,
    write_adapter_info,
)
from stipule.models.autocast import prepare_autocast
from stipule.models.bidirectional import check_bidirectional
from stipule.models.families import DIFFUSION, check_attention, diffusion_section, family_of
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.special_tokens import find_special_tokens
from stipule.models.tokenizer_loading import load_tokenizer
from stipule.models.weights import first_line, load_network

__all__ = [
    "LoRA",
    "ModelConfig",
    "best_device",
    "bundled_models",
    "load_policy",
    "read_model_files",
    "read_published_config",
    "resolve_model_path",
    "save_policy",
]

BUNDLED_FOLDER = Path(__file__).parent / "tiny"

transformers_logging.disable_progress_bar()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model that a run starts from, and how its weights are stored and computed."""

    path: str = "GSAI-ML/LLaDA-8B-Instruct"  # a folder, a run folder, a hub name, or a bundled `tiny/...`
    lora: LoRA | None = None  # None: full fine-tuning
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights
    autocast: bool = False  # compute float32 weights in bfloat16
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    # The default comes from config.json; only causal checkpoints converted to diffusion models (a2d) must set it.
    family: Literal["llada", "dream", "llada_moe", "sdar", "fast_dllm_v2", "a2d", "masked_lm"] | None = None
    shift_logits: bool | None = None  # a2d: whether position i-1 predicts token i, as in the causal model
    # tokens of a block of a block diffusion model (sdar, fast_dllm_v2; a2d becomes one by it); the default comes from
    # config.json
    block_length: int | None = None
    mask_id: int | None = None  # id of the mask token; the default comes from config.json or the tokenizer
    eos_id: int | None = None  # the token that ends a response, if config.json and the tokenizer disagree
    quantize: Literal["nf4"] | None = None  # the frozen base in 4 bits, under LoRA (bitsandbytes: stipule[quant])
    gradient_checkpointing: bool = False  # activations are computed again in the backward pass instead of stored
    device_map: Literal["auto"] | None = None  # evaluation: layers are distributed over all devices

    def __post_init__(self) -> None:
        if self.quantize and self.autocast:
            raise RecipeError(
                f"model.quantize is {self.quantize} and model.autocast is true; autocast is for float32 weights, "
                "quantize makes 4-bit weights; set only one of them"
            )

    @property
    def precision(self) -> str:
        """How the base's weights are stored, in words."""
        return f"{self.quantize}, computed in {self.dtype}" if self.quantize else self.dtype

    @property
    def adapters_use_tf32(self) -> bool:
        """Whether training multiplies adapters in TF32: they are float32 on a base that is less precise.

        Under autocast they are multiplied in bfloat16, as the base.
        """
        return (self.dtype == "bfloat16" or self.quantize is not None) and not self.autocast

    def diffusion_section(self) -> dict[str, Any]:
        """The settings that override config.json, as its `diffusion` section stores them."""
        section = {
            "family": self.family,
            "shift_logits": self.shift_logits,
            "mask_token_id": self.mask_id,
            "eos_token_id": self.eos_id,
            "block_length": self.block_length,
        }
        return {key: value for key, value in section.items() if value is not None}


def resolve_model_path(path: str) -> str:
    """The model folder of a bundled name, a run (its newest checkpoint), or a folder; a hub name stays as it is."""
    folder = Path(path)
    if not folder.exists() and (BUNDLED_FOLDER / folder.name).is_dir() and path.startswith("tiny/"):
        return str(BUNDLED_FOLDER / folder.name)
    if (folder / "checkpoints").is_dir():
        saved = sorted(folder.glob("checkpoints/step-*/model"))
        if not saved:
            raise CheckpointError(
                f"the run {path} has no checkpoint yet; wait for its first, or continue the run with --resume"
            )
        return str(saved[-1])
    return str(folder / "model") if (folder / "model" / "config.json").exists() else path


def best_device() -> str:
    """The device of every command: a GPU if there is one, unless ACCELERATE_USE_CPU is set as for training."""
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"


def load_policy(
    config: ModelConfig | str,
    *,
    reference: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
    to_be_sharded: bool = False,
) -> MaskedPolicy:
    """A policy ready for sampling, likelihoods and training. A string is the `path` of a ModelConfig.

    `reference` keeps a frozen copy for full fine-tuning (with LoRA, the base is the reference); `seed` determines the
    initial LoRA weights. With `to_be_sharded` the weights stay on the CPU until shard_model moves them to the device;
    the caller must then check that attention is bidirectional. Raises CheckpointError, with the cause, for a model that
    is missing, truncated, of another family, causal, or has invalid token ids.
    """
    config = ModelConfig(path=config) if isinstance(config, str) else config
    path = resolve_model_path(config.path)
    verify_checksums(Path(path).parent, f"{Path(path).name}/")  # of a checkpoint of a run
    path, adapter, published_config = read_model_files(config)
    adapter_info = read_adapter_info(adapter) if adapter else {}
    base = read_adapter_options(adapter)["base_model_name_or_path"] if adapter else ""
    family = family_of(published_config)
    check_attention(family, config.attention)
    network_config = family.read_config(published_config)
    tokenizer = load_tokenizer(path, network_config)
    find_special_tokens(published_config, tokenizer, family, network_config.vocab_size)  # before gigabytes are read
    # 4-bit weights are made on the device, and small.
    weights_device = "cpu" if to_be_sharded and not config.quantize else device
    network = load_network(path, published_config, config, weights_device)
    policy = MaskedPolicy(network, tokenizer, published_config, config.autocast)
    policy.precision, policy.adapter_base = config.precision, base
    if not to_be_sharded:
        check_bidirectional(policy)
    if adapter or config.lora or to_be_sharded:  # later no rank has all weights
        policy.base_fingerprint = policy.fingerprint()
    if adapter:
        check_base(adapter_info, policy.base_fingerprint, config.precision, adapter, path)
        policy.model = load_adapter(policy.unwrapped_model, adapter, family).eval()
    elif config.lora:
        policy.model = new_adapter(policy.unwrapped_model, family, config.lora, path, seed).eval()
    elif reference:
        policy.ref_model = load_network(path, published_config, config, weights_device).requires_grad_(False)
    if config.autocast:
        prepare_autocast(policy, on_cpu=torch.device(device).type == "cpu")
    return policy


def read_model_files(config: ModelConfig) -> tuple[str, Path | None, dict[str, Any]]:
    """The folder or hub name of the weights, the folder of an adapter on them, and config.json with the overrides.

    Raises CheckpointError if there is no model.
    """
    path = resolve_model_path(config.path)
    adapter = Path(path) if (Path(path) / "adapter_config.json").exists() else None
    adapter_info = read_adapter_info(adapter) if adapter else {}
    if adapter:
        path = resolve_model_path(read_adapter_options(adapter)["base_model_name_or_path"])
    section = {**diffusion_section(adapter_info), **config.diffusion_section()}
    return path, adapter, with_diffusion_section(read_published_config(path), section)


def read_published_config(path: str) -> dict[str, Any]:
    """`config.json` of a model, as published. Raises CheckpointError if there is none."""
    try:
        file = cached_file(path, "config.json")
        return json.loads(Path(str(file)).read_text())
    except (OSError, json.JSONDecodeError) as cause:
        raise CheckpointError(
            f"no readable model at {path!r}: {first_line(cause)}; give a folder with config.json, tokenizer and "
            f"safetensors, a hub name, or one of {', '.join(bundled_models()) or 'the bundled models'}"
        ) from cause


def with_diffusion_section(published_config: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the recipe's overrides in its `diffusion` section, which is saved with the model."""
    if not overrides:
        return published_config
    return {**published_config, DIFFUSION: {**diffusion_section(published_config), **overrides}}


def bundled_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(f"tiny/{p.parent.name}" for p in BUNDLED_FOLDER.glob("*/config.json"))


def save_policy(
    policy: MaskedPolicy, folder: Path, base: str, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Writes the model in its published layout, or with LoRA only the adapter, and the tokenizer.

    `base` is the name of a new adapter's base; an adapter that was loaded keeps the base that it names. `state_dict`
    replaces the model's own weights; sharded weights must be given here (models/sharding.py).
    """
    base = policy.adapter_base or base
    weights: dict[str, Any] = {} if state_dict is None else {"state_dict": state_dict}
    if hasattr(policy.model, "peft_config"):
        for config in policy.model.peft_config.values():  # type: ignore[union-attr, operator]
            config.base_model_name_or_path = base
        # "auto" would read the base's config.json by its model_type, which may name another class than ours.
        policy.model.save_pretrained(str(folder), save_embedding_layers=False, **weights)  # type: ignore[operator]
        info = {"base": base, "base_fingerprint": policy.base_fingerprint, "precision": policy.precision}
        write_adapter_info(folder, {**info, DIFFUSION: policy.published_config.get(DIFFUSION, {})})
    else:
        save_network(policy, folder, weights)
    policy.tokenizer.save_pretrained(folder)


def save_network(policy: MaskedPolicy, folder: Path, weights: Mapping[str, Any] | None = None) -> None:
    """Writes the network's weights (or the given ones) under their published names, and the published config.json."""
    policy.unwrapped_model.save_pretrained(folder, **(weights or {}))
    (folder / "config.json").write_text(json.dumps(policy.published_config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
