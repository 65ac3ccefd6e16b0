"""Many devices on paper: what each holds, computes and sends, for three engines (docs/scaling.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stipule.errors import RecipeError
from stipule.plan.devices import FRAGMENTATION, LINK_EFFICIENCY, OVERHEAD, Device
from stipule.plan.flops import StepFlops
from stipule.plan.memory_simulation import PeakMemory
from stipule.plan.shape import NetworkShape
from stipule.plan.speed import StepSeconds
from stipule.training.cost import schedule_of
from stipule.training.micro_batches import micro_batches
from stipule.training.settings import Recipe

Engine = Literal["ddp", "fsdp2", "fsdp2_node", "zero3"]
ENGINES: Mapping[Engine, str] = {
    "ddp": "a copy on every device",
    "fsdp2": "weights sharded over all devices",
    "fsdp2_node": "sharded inside a node, a copy on every node",
    "zero3": "DeepSpeed ZeRO-3, sharded over all devices",
}
# DeepSpeed's default buckets, in numbers: gathered weights kept alive, gradients waiting to be reduced, prefetch.
ZERO3_ALIVE, ZERO3_REDUCE, ZERO3_PREFETCH = 10**9, 5 * 10**8, 5 * 10**7


@dataclass(frozen=True)
class ScalingForecast:
    """One engine on gpus x nodes devices. Seconds are of an RL step, bytes on each device."""

    engine: Engine
    devices: int
    compute: float
    communication: float  # if nothing of it were hidden behind computing
    seconds: float
    memory: int
    efficiency: float  # seconds on one device / (devices x seconds)
    dominates: str


def check_division(recipe: Recipe, devices: int) -> None:
    """Raises RecipeError unless the groups of a step can be dealt out evenly: a group never crosses ranks."""
    problems = recipe.training.prompts_per_step
    if problems % devices:
        fitting = max(d for d in range(1, devices + 1) if problems % d == 0)
        raise RecipeError(
            f"{devices} devices cannot share training.prompts_per_step = {problems}: every device gets the same number of "
            f"whole groups; use {fitting} devices, or training.prompts_per_step={-(-problems // devices) * devices}"
        )


def forecast_scaling(
    engine: Engine,
    recipe: Recipe,
    work: StepFlops,
    shape: NetworkShape,
    peaks: PeakMemory,
    whole: StepSeconds,
    device: Device,
    gpus: int,
    nodes: int,
) -> ScalingForecast:
    """Seconds and memory with the step's groups dealt out over `gpus` devices on each of `nodes` nodes.

    `whole` and `work` are of one device doing the whole step; `peaks` of a device's portion, which is the same.
    Gathering weights overlaps with computing the block before; reducing gradients does not.
    """
    devices = gpus * nodes
    check_division(recipe, devices)
    sharded = {"ddp": 1, "fsdp2": devices, "fsdp2_node": gpus, "zero3": devices}[engine]
    inside = device.link * LINK_EFFICIENCY
    across = inside if nodes == 1 else min(device.link, device.network) * LINK_EFFICIENCY
    gathering = inside if engine == "fsdp2_node" else across

    gathers = _gathers(recipe, devices)
    per_gather = peaks.weights * (sharded - 1) / sharded / gathering
    seconds = communication = 0.0
    for name, count in gathers.items():
        computing, sending = getattr(whole, name) / devices, count * per_gather
        seconds += max(computing, sending)
        communication += sending
    reducing = recipe.training.num_iterations * _reduce(peaks.gradients, sharded, devices, gathering, across)
    seconds, communication = seconds + reducing, communication + reducing
    compute = whole.step / devices
    return ScalingForecast(
        engine,
        devices,
        compute,
        communication,
        seconds,
        _memory(engine, sharded, peaks, shape),
        whole.step / (devices * seconds),
        "computing" if communication < compute else "sending weights" if sharded > 1 else "reducing gradients",
    )


def _gathers(recipe: Recipe, devices: int) -> dict[str, int]:
    """How often a device sees all the weights in each part of a step: batched calls, not rows."""
    settings = recipe.training
    rows = settings.prompts_per_step * settings.num_generations // devices
    scoring = len(micro_batches(slice(0, rows), settings.micro_batch_size))
    old = settings.num_iterations - 1 if recipe.objective.uses_old_policy else 0
    return {
        "rollout": schedule_of(recipe).nfe * len(micro_batches(slice(0, rows), settings.rollout_batch_size)),
        "old_logps": old * scoring,
        "ref_logps": settings.num_iterations * scoring if recipe.objective.beta > 0 else 0,
        "update": 2 * settings.num_iterations * scoring,  # forward, and again for the backward pass
    }


def _reduce(gradients: int, sharded: int, devices: int, inside: float, across: float) -> float:
    """Seconds to sum the gradients of one update: scattered over a shard group, all-reduced over its copies."""
    copies = devices // sharded
    scattering = gradients * (sharded - 1) / sharded / inside
    return scattering + 2 * (gradients / sharded) * (copies - 1) / copies / across


def _memory(engine: Engine, sharded: int, peaks: PeakMemory, shape: NetworkShape) -> int:
    """Bytes on a device: its share of what is held, what is gathered at once, and a portion's activations."""
    moving = peaks.peak - peaks.static
    if sharded == 1:
        return int(peaks.peak * FRAGMENTATION + OVERHEAD)
    size = peaks.weights / shape.parameters
    block, ends = size * shape.backbone / shape.layers, size * (shape.parameters - shape.backbone)
    gathered = 2 * block + ends  # the block at work and the next; embedding and head stay gathered
    if engine == "zero3":
        alive = min(shape.parameters, ZERO3_ALIVE) * size
        gathered = alive + size * (min(shape.trained, ZERO3_REDUCE) + ZERO3_PREFETCH)
    return int((peaks.static / sharded + gathered + moving) * FRAGMENTATION + OVERHEAD)


def scaling_curve(recipe: Recipe, gpus: int, **parts: Any) -> list[ScalingForecast]:
    """One engine on 1, 2, 4, ... devices, as far as the groups of a step go round."""
    found: list[ScalingForecast] = []
    devices = 1
    while recipe.training.prompts_per_step % devices == 0:
        nodes = -(-devices // gpus)
        if devices == nodes * min(devices, gpus):
            found.append(forecast_scaling(recipe=recipe, gpus=min(devices, gpus), nodes=nodes, **parts))
        devices *= 2
    return found
