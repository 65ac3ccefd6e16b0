"""Whether a step fits into a device, and which settings to change if it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stipule.models.loading import LoRA
from stipule.plan.devices import FRAGMENTATION, OVERHEAD
from stipule.plan.memory_simulation import PeakMemory, quantized, simulate_memory
from stipule.training.settings import Recipe

SMALL_RANK = 16


@dataclass(frozen=True)
class Remedy:
    """Settings that make a step fit, in the order they were tried, and the bytes needed with all of them."""

    settings: tuple[str, ...]
    needed_bytes: int  # overhead included
    fits: bool


def needed_memory(peaks: PeakMemory, accelerator: bool) -> int:
    """Bytes of device memory: those of tensors and, on an accelerator, of its libraries and allocator."""
    return int(peaks.peak * FRAGMENTATION + OVERHEAD) if accelerator else peaks.peak


def remedy(
    recipe: Recipe, config_json: Mapping[str, Any], prompt_length: int, padded: bool, accelerator: bool, budget: int
) -> Remedy:
    """Changes one setting at a time until the simulated peak is at most `budget` bytes.

    Batch sizes come first, because they change no result. Then come settings that cost time (checkpointing), precision
    (bfloat16, a 4-bit base) or capacity (LoRA). If the step still does not fit, `fits` is False.
    """
    settings: dict[str, str] = {}
    peaks = simulate_memory(recipe, config_json, prompt_length, padded, accelerator)
    while needed_memory(peaks, accelerator) > budget:
        change = _next_change(recipe, peaks, budget)
        if change is None:
            return Remedy(tuple(f"{k}={v}" for k, v in settings.items()), needed_memory(peaks, accelerator), False)
        recipe, key, value = change
        settings[key] = value
        peaks = simulate_memory(recipe, config_json, prompt_length, padded, accelerator)
    return Remedy(tuple(f"{k}={v}" for k, v in settings.items()), needed_memory(peaks, accelerator), True)


def _next_change(recipe: Recipe, peaks: PeakMemory, budget: int) -> tuple[Recipe, str, str] | None:
    """The recipe with one more setting changed, the setting and its value."""
    training, model = recipe.training, recipe.model
    # Static memory does not depend on batch sizes: if it alone is too much, smaller batches do not help.
    if peaks.static < budget:
        if peaks.largest_phase in ("update", "logps") and training.micro_batch_size > 1:
            return _halve(recipe, "micro_batch_size")
        if peaks.largest_phase == "rollout" and training.rollout_batch_size > 1:
            return _halve(recipe, "rollout_batch_size")
        if peaks.largest_phase == "update" and not model.gradient_checkpointing:
            return _change_model(recipe, "gradient_checkpointing", True)
    if model.lora is None:
        changed = replace(recipe, model=replace(model, lora=LoRA()))
        return changed, "model.lora.rank", str(LoRA().rank)
    if model.dtype == "float32" and not model.autocast:
        return _change_model(recipe, "dtype", "bfloat16")
    if not quantized(recipe):
        return _change_model(recipe, "quantize", "nf4")
    if model.lora.rank > SMALL_RANK:
        smaller = replace(model.lora, rank=SMALL_RANK)
        return replace(recipe, model=replace(model, lora=smaller)), "model.lora.rank", str(SMALL_RANK)
    return None


def _halve(recipe: Recipe, name: str) -> tuple[Recipe, str, str]:
    """A batch size of `training` halved, from at most the rows of a step."""
    training = recipe.training
    rows = min(getattr(training, name), training.prompts_per_step * training.num_generations) // 2 or 1
    changed: dict[str, Any] = {name: rows}
    return replace(recipe, training=replace(training, **changed)), f"training.{name}", str(rows)


def _change_model(recipe: Recipe, name: str, value: Any) -> tuple[Recipe, str, str]:
    changed: dict[str, Any] = {name: value}
    return replace(recipe, model=replace(recipe.model, **changed)), f"model.{name}", str(value).lower()
