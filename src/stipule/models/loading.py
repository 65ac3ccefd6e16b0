"""From a folder or a hub name to a policy, and from a policy to a folder in the published layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from stipule.errors import CheckpointError, RecipeError
from stipule.models.families import family_of
from stipule.models.policy import MaskedPolicy, check_bidirectional, check_ids

BUNDLED = Path(__file__).parent / "tiny"

transformers_logging.disable_progress_bar()


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters on the attention and MLP matrices, never on the LM head (table 8)."""

    rank: int = 128  # table 8
    alpha: int = 64  # table 8
    targets: Literal["all", "published"] = "all"  # "published": the four that d1's target list really hits

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise RecipeError(f"model.lora has rank {self.rank} and alpha {self.alpha}; both must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model a run starts from and how it is held."""

    path: str = "GSAI-ML/LLaDA-8B-Instruct"  # a folder, a run folder, a hub name, or a bundled `tiny/...`
    lora: LoRA | None = None  # None: full fine-tuning
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights
    autocast: bool = False  # compute float32 weights in bfloat16
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"


def locate(path: str) -> str:
    """The model folder that a user's words mean: a bundled name, a run's newest checkpoint, a folder, or a hub name."""
    place = Path(path)
    if not place.exists() and (BUNDLED / place.name).is_dir() and path.startswith("tiny/"):
        return str(BUNDLED / place.name)
    if (place / "checkpoints").is_dir():
        kept = sorted(place.glob("checkpoints/step-*/model"))
        if not kept:
            raise CheckpointError(f"{path} is a run without a checkpoint yet; run it on with --resume, or wait for one")
        return str(kept[-1])
    return str(place / "model") if (place / "model" / "config.json").exists() else path


def load_policy(
    choice: ModelChoice, *, reference: bool = False, device: torch.device | str = "cpu", seed: int = 0
) -> MaskedPolicy:
    """A policy ready to sample, score and train.

    `reference` keeps a frozen copy for full fine-tuning (LoRA is its own reference); `seed` decides the first LoRA
    weights. Raises CheckpointError, with the cause, on anything missing, truncated, of another family, causal, or with
    impossible token ids.
    """
    place = locate(choice.path)
    adapter = Path(place) if (Path(place) / "adapter_config.json").exists() else None
    if adapter:
        place = locate(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    published = read_published(place)
    tokenizer = _load_tokenizer(place, family_of(published).read_config(published))
    check_ids(published, tokenizer)  # before gigabytes are read
    policy = MaskedPolicy(load_network(place, choice, device), tokenizer, published, choice.autocast)
    check_bidirectional(policy)
    if adapter or choice.lora:
        policy.model = _with_lora(policy.core, choice.lora, adapter, place, seed).eval()
    elif reference:
        policy.frozen = load_network(place, choice, device).eval().requires_grad_(False)
    return policy


def read_published(place: str) -> dict[str, Any]:
    """`config.json` of a model, as published."""
    try:
        found = cached_file(place, "config.json")
        return json.loads(Path(str(found)).read_text())
    except (OSError, json.JSONDecodeError) as cause:
        raise CheckpointError(
            f"no readable model at {place!r}: {_first_line(cause)}; give a folder with config.json, tokenizer and "
            f"safetensors, a hub name, or one of {', '.join(bundled()) or 'the bundled models'}"
        ) from cause


def bundled() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(f"tiny/{p.parent.name}" for p in BUNDLED.glob("*/config.json"))


def load_network(place: str, choice: ModelChoice, device: torch.device | str) -> PreTrainedModel:
    """The network alone. Safetensors only: a pickle checkpoint can run code and is never opened."""
    published = read_published(place)
    family = family_of(published)
    try:
        model, report = family.model_class.from_pretrained(
            place,
            config=family.read_config(published),
            dtype=getattr(torch, choice.dtype),
            attn_implementation=choice.attention,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, ImportError) as cause:
        raise CheckpointError(
            f"the weights at {place!r} cannot be read: {_first_line(cause)}; they must be complete safetensors files "
            "that fit config.json; copy or download them again"
        ) from cause
    lost = {name: sorted(report[name])[:3] for name in ("missing_keys", "unexpected_keys") if report[name]}
    if lost:
        raise CheckpointError(f"the weights at {place!r} do not fit config.json: {lost}; is the checkpoint complete?")
    return model.to(device)  # type: ignore[arg-type]


def save_policy(policy: MaskedPolicy, folder: Path, base: str, state: dict[str, torch.Tensor] | None = None) -> None:
    """Writes the model in its published layout, or the adapter alone where LoRA is on, with its tokenizer.

    `state` are the weights to write where the model does not hold them itself (models/sharding.py).
    """
    given: dict[str, Any] = {} if state is None else {"state_dict": state}
    if hasattr(policy.model, "peft_config"):
        for config in policy.model.peft_config.values():  # type: ignore[union-attr, operator]
            config.base_model_name_or_path = base
        policy.model.save_pretrained(str(folder), **given)  # type: ignore[operator]
    else:
        policy.core.save_pretrained(folder, **given)
        (folder / "config.json").write_text(json.dumps(policy.published, indent=2) + "\n")
        (folder / "generation_config.json").unlink(missing_ok=True)
    policy.tokenizer.save_pretrained(folder)


def _load_tokenizer(place: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    try:
        # Without a configuration AutoTokenizer would read config.json itself, and warn of a type that it does not know.
        return AutoTokenizer.from_pretrained(place, config=config, padding_side="left")
    except (OSError, ValueError, KeyError) as cause:
        raise CheckpointError(
            f"no readable tokenizer at {place!r}: {_first_line(cause)}; tokenizer.json and tokenizer_config.json "
            "belong beside config.json"
        ) from cause


def _with_lora(
    model: PreTrainedModel, lora: LoRA | None, adapter: Path | None, base: str, seed: int
) -> torch.nn.Module:
    from peft import LoraConfig, PeftModel, get_peft_model  # seconds to import, and full fine-tuning needs none of it

    if adapter:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    assert lora is not None
    targets = family_of({"model_type": model.config.model_type}).lora_targets[lora.targets]
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(targets), lora_dropout=0.0, base_model_name_or_path=base
    )
    with torch.random.fork_rng():  # peft draws its first weights from the global generator; put it back after
        torch.random.manual_seed(seed)
        return get_peft_model(model, config)  # type: ignore[return-value]


def _first_line(cause: BaseException) -> str:
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
