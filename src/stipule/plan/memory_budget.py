"""Whether a step fits into a device, and which settings to change where it does not."""

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
    """Settings that make a step fit, most harmless first, and the peak with all of them (bytes, overhead included)."""

    settings: tuple[str, ...]
    needed_bytes: int
    fits: bool


def needed_memory(peaks: PeakMemory, accelerator: bool) -> int:
    """Bytes of device memory: our tensors, and on an accelerator what its libraries and allocator hold besides."""
    return int(peaks.peak * FRAGMENTATION + OVERHEAD) if accelerator else peaks.peak


def remedy(
    recipe: Recipe, published: Mapping[str, Any], prompt: int, padded: bool, accelerator: bool, budget: int
) -> Remedy:
    """Changes one setting after the other until the rehearsed peak is within `budget` bytes.

    Portions come first, because they change no result; then what costs time (checkpointing), precision (bfloat16,
    a 4-bit base) or freedom (LoRA). The last remedy is what a device cannot give: more of them, sharded.
    """
    settings: dict[str, str] = {}
    peaks = simulate_memory(recipe, published, prompt, padded, accelerator)
    while needed_memory(peaks, accelerator) > budget:
        step = _next(recipe, peaks, budget)
        if step is None:
            return Remedy(tuple(f"{k}={v}" for k, v in settings.items()), needed_memory(peaks, accelerator), False)
        recipe, key, value = step
        settings[key] = value
        peaks = simulate_memory(recipe, published, prompt, padded, accelerator)
    return Remedy(tuple(f"{k}={v}" for k, v in settings.items()), needed_memory(peaks, accelerator), True)


def _next(recipe: Recipe, peaks: PeakMemory, budget: int) -> tuple[Recipe, str, str] | None:
    """The recipe with one more setting changed, and which."""
    training, model = recipe.training, recipe.model
    # A portion of one row still needs what is held: where that alone is too much, portions are not the remedy.
    if peaks.static < budget:
        if peaks.largest_phase in ("update", "logps") and training.micro_batch_size > 1:
            rows = min(training.micro_batch_size, training.prompts_per_step * training.num_generations) // 2 or 1
            return (
                replace(recipe, training=replace(training, micro_batch_size=rows)),
                "training.micro_batch_size",
                str(rows),
            )
        if peaks.largest_phase == "rollout" and training.rollout_batch_size > 1:
            rows = min(training.rollout_batch_size, training.prompts_per_step * training.num_generations) // 2 or 1
            return (
                replace(recipe, training=replace(training, rollout_batch_size=rows)),
                "training.rollout_batch_size",
                str(rows),
            )
        if peaks.largest_phase == "update" and not model.gradient_checkpointing:
            return _model(recipe, "checkpointing", True)
    if model.lora is None:
        changed = replace(recipe, model=replace(model, lora=LoRA()))
        return changed, "model.lora.rank", str(LoRA().rank)
    if model.dtype == "float32" and not model.autocast:
        return _model(recipe, "dtype", "bfloat16")
    if not quantized(recipe):
        return _model(recipe, "quantize", "nf4")
    if model.lora.rank > SMALL_RANK:
        smaller = replace(model.lora, rank=SMALL_RANK)
        return replace(recipe, model=replace(model, lora=smaller)), "model.lora.rank", str(SMALL_RANK)
    return None


def _model(recipe: Recipe, name: str, value: Any) -> tuple[Recipe, str, str]:
    changed: dict[str, Any] = {name: value}
    return replace(recipe, model=replace(recipe.model, **changed)), f"model.{name}", str(value).lower()
