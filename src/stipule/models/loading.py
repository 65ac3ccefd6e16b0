"""From a folder or a hub name to a policy, and from a policy to a folder in the published layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from stipule.errors import CheckpointError, RecipeError
from stipule.models.adapters import LoRA, check_base, load_adapter, new_adapter, read_adapter_info, write_adapter_info
from stipule.models.autocast import prepare_autocast
from stipule.models.bidirectional import check_bidirectional
from stipule.models.families import DIFFUSION, family_of
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.special_tokens import find_special_tokens
from stipule.models.weights import first_line, load_network

__all__ = ["LoRA", "ModelChoice", "best_device", "bundled", "load_policy", "locate", "read_published", "save_policy"]

BUNDLED_FOLDER = Path(__file__).parent / "tiny"

transformers_logging.disable_progress_bar()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model a run starts from and how it is held."""

    path: str = "GSAI-ML/LLaDA-8B-Instruct"  # a folder, a run folder, a hub name, or a bundled `tiny/...`
    lora: LoRA | None = None  # None: full fine-tuning
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights
    autocast: bool = False  # compute float32 weights in bfloat16
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    # What config.json leaves open. `family` is needed for causal checkpoints turned into diffusion models (a2d) alone.
    family: Literal["llada", "dream", "llada_moe", "a2d", "masked_lm"] | None = None
    shift_logits: bool | None = None  # a2d: whether position i-1 predicts token i, as before the turn
    mask_id: int | None = None
    eos_id: int | None = None  # which token ends a response, where config.json and the tokenizer disagree
    # What makes a model fit.
    quantize: Literal["nf4"] | None = None  # the frozen base in 4 bits, under LoRA (bitsandbytes: stipule[quant])
    gradient_checkpointing: bool = False  # activations are computed again in the backward pass instead of kept
    device_map: Literal["auto"] | None = None  # evaluation: layers spread over all devices

    def __post_init__(self) -> None:
        if self.quantize and self.autocast:
            raise RecipeError("model.autocast is for float32 weights, and model.quantize makes them 4-bit; set one")

    @property
    def precision(self) -> str:
        """How the base's weights are held, in a word."""
        return f"{self.quantize}, computed in {self.dtype}" if self.quantize else self.dtype

    def diffusion_section(self) -> dict[str, Any]:
        """What the recipe says of the model's meaning, as a config.json's `diffusion` section has it."""
        said = {
            "family": self.family,
            "shift": self.shift_logits,
            "mask_token_id": self.mask_id,
            "eos_token_id": self.eos_id,
        }
        return {key: value for key, value in said.items() if value is not None}


def resolve_model_path(path: str) -> str:
    """The model folder that a user's words mean: a bundled name, a run's newest checkpoint, a folder, or a hub name."""
    place = Path(path)
    if not place.exists() and (BUNDLED_FOLDER / place.name).is_dir() and path.startswith("tiny/"):
        return str(BUNDLED_FOLDER / place.name)
    if (place / "checkpoints").is_dir():
        kept = sorted(place.glob("checkpoints/step-*/model"))
        if not kept:
            raise CheckpointError(f"{path} is a run without a checkpoint yet; run it on with --resume, or wait for one")
        return str(kept[-1])
    return str(place / "model") if (place / "model" / "config.json").exists() else path


def best_device() -> str:
    """An accelerator if there is one; training asks accelerate instead."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_policy(
    choice: ModelConfig, *, reference: bool = False, device: torch.device | str = "cpu", seed: int = 0
) -> MaskedPolicy:
    """A policy ready to sample, score and train.

    `reference` keeps a frozen copy for full fine-tuning (LoRA is its own reference); `seed` decides the first LoRA
    weights. Raises CheckpointError, with the cause, on anything missing, truncated, of another family, causal, or with
    impossible token ids.
    """
    place = resolve_model_path(choice.path)
    adapter = Path(place) if (Path(place) / "adapter_config.json").exists() else None
    record = read_adapter_info(adapter) if adapter else {}
    if adapter:
        place = resolve_model_path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    published = with_diffusion_section(
        read_published_config(place), {**record.get(DIFFUSION, {}), **choice.diffusion_section()}
    )
    family = family_of(published)
    config = family.read_config(published)
    tokenizer = _load_tokenizer(place, config)
    find_special_tokens(published, tokenizer, family, config.vocab_size)  # before gigabytes are read
    network = load_network(place, published, choice, device)
    policy = MaskedPolicy(network, tokenizer, published, choice.autocast)
    policy.precision = choice.precision
    check_bidirectional(policy)
    if adapter or choice.lora:
        policy.base_fingerprint = policy.fingerprint()
    if adapter:
        check_base(record, policy.base_fingerprint, choice.precision, adapter, place)
        policy.model = load_adapter(policy.unwrapped_model, adapter).eval()
    elif choice.lora:
        policy.model = new_adapter(policy.unwrapped_model, family, choice.lora, place, seed).eval()
    elif reference:
        policy.ref_model = load_network(place, published, choice, device).requires_grad_(False)
    if choice.autocast:
        prepare_autocast(policy)
    return policy


def read_published_config(place: str) -> dict[str, Any]:
    """`config.json` of a model, as published."""
    try:
        found = cached_file(place, "config.json")
        return json.loads(Path(str(found)).read_text())
    except (OSError, json.JSONDecodeError) as cause:
        raise CheckpointError(
            f"no readable model at {place!r}: {first_line(cause)}; give a folder with config.json, tokenizer and "
            f"safetensors, a hub name, or one of {', '.join(bundled_models()) or 'the bundled models'}"
        ) from cause


def with_diffusion_section(published: dict[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the recipe's words in its `diffusion` section, where they are saved with the model."""
    return {**published, DIFFUSION: {**published.get(DIFFUSION, {}), **words}} if words else published


def bundled_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(f"tiny/{p.parent.name}" for p in BUNDLED_FOLDER.glob("*/config.json"))


def save_policy(policy: MaskedPolicy, folder: Path, base: str, state: dict[str, torch.Tensor] | None = None) -> None:
    """Writes the model in its published layout, or the adapter alone where LoRA is on, with its tokenizer.

    `state` are the weights to write where the model does not hold them itself (models/sharding.py).
    """
    given: dict[str, Any] = {} if state is None else {"state_dict": state}
    if hasattr(policy.model, "peft_config"):
        for config in policy.model.peft_config.values():  # type: ignore[union-attr, operator]
            config.base_model_name_or_path = base
        # "auto" would read the base's config.json by its model_type, which may name another class than ours.
        policy.model.save_pretrained(str(folder), save_embedding_layers=False, **given)  # type: ignore[operator]
        record = {"base": base, "base_fingerprint": policy.base_fingerprint, "precision": policy.precision}
        write_adapter_info(folder, {**record, DIFFUSION: policy.published_config.get(DIFFUSION, {})})
    else:
        save_network(policy, folder, given)
    policy.tokenizer.save_pretrained(folder)


def save_network(policy: MaskedPolicy, folder: Path, given: Mapping[str, Any] | None = None) -> None:
    """The network's weights, or those that are given, under their published names, and the published config.json."""
    policy.unwrapped_model.save_pretrained(folder, **(given or {}))
    (folder / "config.json").write_text(json.dumps(policy.published_config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)


def _load_tokenizer(place: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    try:
        # Without a configuration AutoTokenizer would read config.json itself, and warn of a type that it does not know.
        return AutoTokenizer.from_pretrained(place, config=config, padding_side="left")
    except (OSError, ValueError, KeyError) as cause:
        raise CheckpointError(
            f"no readable tokenizer at {place!r}: {first_line(cause)}; tokenizer.json and tokenizer_config.json "
            "belong beside config.json"
        ) from cause
