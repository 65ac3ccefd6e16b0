"""Predicts memory, computing and communication of each of many devices, for four engines (docs/scaling.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stipule.errors import RecipeError
from stipule.plan.devices import FRAGMENTATION, LINK_EFFICIENCY, OVERHEAD, Device
from stipule.plan.memory_simulation import PeakMemory
from stipule.plan.shape import NetworkShape
from stipule.plan.speed import StepSeconds
from stipule.training.cost import step_cost
from stipule.training.micro_batches import micro_batches
from stipule.training.settings import Recipe

Engine = Literal["ddp", "fsdp2", "fsdp2_node", "zero3"]
ENGINES: Mapping[Engine, str] = {
    "ddp": "a copy on every device",
    "fsdp2": "weights sharded over all devices",
    "fsdp2_node": "sharded inside a node, a copy on every node",
    "zero3": "DeepSpeed ZeRO-3, sharded over all devices",
}
# DeepSpeed's default limits, in numbers: gathered weights that stay on the device, gradient bucket, prefetched weights.
ZERO3_MAX_LIVE, ZERO3_REDUCE, ZERO3_PREFETCH = 10**9, 5 * 10**8, 5 * 10**7


@dataclass(frozen=True)
class ScalingForecast:
    """One engine on gpus x nodes devices. Seconds are of an RL step, bytes of each device."""

    engine: Engine
    devices: int
    compute: float
    communication: float  # without overlap with computing
    seconds: float
    memory: int
    efficiency: float  # seconds on one device / (devices x seconds)
    dominates: str


def check_division(recipe: Recipe, devices: int) -> None:
    """Raises RecipeError unless the groups of a step can be divided evenly. A group is never split over ranks."""
    prompts = recipe.training.prompts_per_step
    if prompts % devices:
        divisor = max(d for d in range(1, devices + 1) if prompts % d == 0)
        raise RecipeError(
            f"training.prompts_per_step is {prompts}, which is not a multiple of {devices} devices; every device needs "
            f"the same number of whole groups; use {divisor} devices, or "
            f"training.prompts_per_step={-(-prompts // devices) * devices}"
        )


def forecast_scaling(
    engine: Engine,
    recipe: Recipe,
    shape: NetworkShape,
    peaks: PeakMemory,
    step_seconds: StepSeconds,
    device: Device,
    gpus: int,
    nodes: int,
) -> ScalingForecast:
    """Seconds and memory if the groups of a step are divided over `gpus` devices on each of `nodes` nodes.

    `step_seconds` are for one device that computes the whole step. `peaks` do not depend on the number of
    devices. Gathering weights overlaps with computing the layer before; reducing gradients does not overlap.
    """
    devices = gpus * nodes
    check_division(recipe, devices)
    num_shards = {"ddp": 1, "fsdp2": devices, "fsdp2_node": gpus, "zero3": devices}[engine]
    in_node = device.link * LINK_EFFICIENCY
    between_nodes = in_node if nodes == 1 else min(device.link, device.network) * LINK_EFFICIENCY
    gather_bandwidth = in_node if engine == "fsdp2_node" else between_nodes

    gather_seconds = peaks.weights * (num_shards - 1) / num_shards / gather_bandwidth
    seconds = communication = 0.0
    for phase, count in _gathers(recipe, devices).items():
        computing, gathering = getattr(step_seconds, phase) / devices, count * gather_seconds
        seconds += max(computing, gathering)
        communication += gathering
    reduce_seconds = _reduce_seconds(peaks.gradients, num_shards, devices, gather_bandwidth, between_nodes)
    reducing = recipe.training.num_iterations * reduce_seconds
    seconds, communication = seconds + reducing, communication + reducing
    compute = step_seconds.step / devices
    return ScalingForecast(
        engine,
        devices,
        compute,
        communication,
        seconds,
        _memory(engine, num_shards, peaks, shape),
        step_seconds.step / (devices * seconds),
        "computing" if communication < compute else "sending weights" if num_shards > 1 else "reducing gradients",
    )


def _gathers(recipe: Recipe, devices: int) -> dict[str, int]:
    """How often a device gathers all weights in each phase of a step: once per forward pass of a batch."""
    settings = recipe.training
    rows = settings.prompts_per_step * settings.num_generations // devices
    batches = len(micro_batches(slice(0, rows), settings.micro_batch_size))
    old = settings.num_iterations - 1 if recipe.objective.uses_old_policy else 0
    return {
        "rollout": round(step_cost(recipe).nfe_per_rollout)
        * len(micro_batches(slice(0, rows), settings.rollout_batch_size)),
        "old_logps": old * batches,
        "ref_logps": settings.num_iterations * batches if recipe.objective.beta > 0 else 0,
        "update": 2 * settings.num_iterations * batches,  # once forward, once backward
    }


def _reduce_seconds(
    gradients: int, num_shards: int, devices: int, gather_bandwidth: float, between_nodes: float
) -> float:
    """Seconds to sum the gradients of one update: a reduce-scatter over the shards, then an all-reduce over copies."""
    copies = devices // num_shards
    scattering = gradients * (num_shards - 1) / num_shards / gather_bandwidth
    return scattering + 2 * (gradients / num_shards) * (copies - 1) / copies / between_nodes


def _memory(engine: Engine, num_shards: int, peaks: PeakMemory, shape: NetworkShape) -> int:
    """Bytes of one device: its fraction of the static memory, the gathered weights, and activations."""
    activations = peaks.peak - peaks.static
    if num_shards == 1:
        return int(peaks.peak * FRAGMENTATION + OVERHEAD)
    size = peaks.weights / shape.parameters
    layer, ends = size * shape.backbone / shape.layers, size * (shape.parameters - shape.backbone)
    gathered = 2 * layer + ends  # the current layer and the next one; embedding and LM head stay gathered
    if engine == "zero3":
        gathered_weights = min(shape.parameters, ZERO3_MAX_LIVE) * size
        gathered = gathered_weights + size * (min(shape.trained, ZERO3_REDUCE) + ZERO3_PREFETCH)
    return int((peaks.static / num_shards + gathered + activations) * FRAGMENTATION + OVERHEAD)


def scaling_curve(recipe: Recipe, gpus: int, **arguments: Any) -> list[ScalingForecast]:
    """One engine on 1, 2, 4, ... devices, as long as the groups of a step can be divided evenly."""
    curve: list[ScalingForecast] = []
    devices = 1
    while recipe.training.prompts_per_step % devices == 0:
        nodes = -(-devices // gpus)
        if devices == nodes * min(devices, gpus):
            curve.append(forecast_scaling(recipe=recipe, gpus=min(devices, gpus), nodes=nodes, **arguments))
        devices *= 2
    return curve
