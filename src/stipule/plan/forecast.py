"""The forecast of a recipe: all numbers that `stipule plan` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from stipule.errors import RecipeError, StipuleError
from stipule.models.families import family_of
from stipule.models.loading import resolve_model_path, with_diffusion_section
from stipule.models.tokenizer_loading import load_tokenizer
from stipule.plan.devices import DEVICES, Device
from stipule.plan.dummy_model import dummy_policy
from stipule.plan.flops import StepFlops, count_flops
from stipule.plan.memory_budget import Remedy, needed_memory, remedy
from stipule.plan.memory_simulation import PeakMemory, simulate_memory
from stipule.plan.scaling import ENGINES, Engine, ScalingForecast, check_division, forecast_scaling, scaling_curve
from stipule.plan.shape import NetworkShape, published_config, shape_of
from stipule.plan.speed import StepSeconds, from_data_sheet, matmul_rate, measure_seconds
from stipule.rollouts.block_grid import check_blocks
from stipule.tasks.problem import Problem
from stipule.training.cost import StepCost, max_step_cost
from stipule.training.settings import Recipe

PROMPT_LENGTH = 200  # tokens, if the task's prompts cannot be encoded here; SPG truncates prompts to this length
PROMPT_SAMPLE = 64  # number of prompts to encode, to measure their lengths


@dataclass(frozen=True)
class PlanOptions:
    """The options of `stipule plan`."""

    gpus: int = 1
    nodes: int = 1
    memory: int | None = None  # bytes of each device
    engine: Engine | None = None
    measure: bool = True
    device: Device | None = None
    config: Path | None = None
    prompt: int | None = None  # width of the prompts in tokens


@dataclass(frozen=True)
class PromptShape:
    """The prompts of a step."""

    tokens: int  # their width
    padded: bool  # whether their lengths differ
    problems: int | None  # number of training problems, if known
    source: str


@dataclass(frozen=True)
class Forecast:
    """What a recipe will need."""

    source: str
    shape: NetworkShape
    prompt_shape: PromptShape
    flops: StepFlops  # expected
    max_cost: StepCost
    peaks: PeakMemory
    needed_memory: int
    budget: int | None
    remedy: Remedy | None
    seconds: StepSeconds | None
    in_bfloat16: StepSeconds | None  # with model.autocast=true, if this device multiplies faster in bfloat16
    extra_calls: dict[str, int]  # rows x forward passes of a whole run in addition to its steps
    scaling: list[ScalingForecast] = field(default_factory=list)
    scaling_curve: list[ScalingForecast] = field(default_factory=list)

    def run_seconds(self, steps: int) -> float:
        """Seconds of the whole run on one device."""
        assert self.seconds is not None
        seconds_per_call = self.seconds.rollout / self.flops.rollout.calls
        return steps * self.seconds.step + seconds_per_call * sum(self.extra_calls.values())


def forecast(recipe: Recipe, options: PlanOptions, progress: Callable[[str], None] = lambda message: None) -> Forecast:
    """Computes the forecast; `progress` is called with a message before each part.

    Raises RecipeError for options that do not fit together, CheckpointError if the model's sizes are not known.
    """
    devices = options.gpus * options.nodes
    if devices > 1:
        check_division(recipe, devices)
    config_json, source = published_config(recipe.model.path, options.config)
    config_json = with_diffusion_section(config_json, recipe.model.diffusion_section())
    shape = shape_of(config_json, recipe.model.lora)
    check_blocks(recipe.sampler.block_length, recipe.sampler.block_schedule, shape.block_length)
    progress("reading prompts")
    prompt_shape = prompt_shape_of(recipe, config_json, options.prompt)
    progress("counting operations")
    accelerator = options.device is not None or options.memory is not None or torch.cuda.is_available()
    flops = count_flops(recipe, shape, prompt_shape.tokens)
    progress("simulating the memory of a step")
    arguments = (recipe, config_json, prompt_shape.tokens, prompt_shape.padded, accelerator)
    peaks = simulate_memory(*arguments)
    budget = options.memory or (options.device.memory if options.device else _device_memory())
    change = None
    if budget is not None and needed_memory(peaks, accelerator) > budget:
        progress("looking for settings that fit")
        change = remedy(*arguments, budget)
    seconds = _seconds(recipe, options, config_json, flops, shape, prompt_shape, progress)
    in_bfloat16 = None
    if options.measure and options.device is None and may_autocast(recipe):
        autocast = replace(recipe, model=replace(recipe.model, autocast=True))
        in_bfloat16 = _seconds(autocast, options, config_json, flops, shape, prompt_shape, progress)
    scaling: list[ScalingForecast] = []
    curve: list[ScalingForecast] = []
    if devices > 1:
        device = options.device or DEVICES["a100"]
        if seconds is None:
            seconds = from_data_sheet(recipe, flops, shape, device)
        inputs: dict[str, Any] = {"shape": shape, "peaks": peaks, "step_seconds": seconds, "device": device}
        engines = [options.engine] if options.engine else list(ENGINES)
        scaling = [forecast_scaling(e, recipe, gpus=options.gpus, nodes=options.nodes, **inputs) for e in engines]
        curve = scaling_curve(recipe, options.gpus, engine=engines[0], **inputs)
    return Forecast(
        source, shape, prompt_shape, flops, max_step_cost(recipe), peaks, needed_memory(peaks, accelerator), budget,
        change, seconds, in_bfloat16, extra_calls(recipe, prompt_shape.problems), scaling, curve,
    )  # fmt: skip


def prompt_shape_of(recipe: Recipe, config_json: Mapping[str, Any], prompt_length: int | None) -> PromptShape:
    """The given length; else that of encoded training prompts, if model folder and problems are on this machine."""
    num_problems = getattr(recipe.task, "train_problems", None)
    several = recipe.training.prompts_per_step > 1
    if prompt_length is not None:
        if prompt_length < 1:
            raise RecipeError(
                f"--prompt is {prompt_length}; it is the width of the prompts in tokens and must be 1 or more; "
                f"try {PROMPT_LENGTH}"
            )
        return PromptShape(prompt_length, several, num_problems, "as given")
    path = resolve_model_path(recipe.model.path)
    problems = _problems(recipe) if Path(path).is_dir() else None  # a plan downloads neither weights nor data
    if problems is None:
        return PromptShape(PROMPT_LENGTH, several, num_problems, "assumed; give --prompt if yours are longer")
    policy = dummy_policy(config_json, recipe.model, "meta", layers=1)
    policy.tokenizer = load_tokenizer(path, family_of(config_json).read_config(config_json))
    batch_size = recipe.training.prompts_per_step
    sample = problems[: max(1, PROMPT_SAMPLE // batch_size) * batch_size]
    lengths = [policy.encode([problem.messages]).prompt_ids.shape[1] for problem in sample]
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return PromptShape(
        round(mean(map(max, batches))),
        any(min(batch) < max(batch) for batch in batches),
        len(problems),
        f"of {len(sample)} training prompts",
    )


def may_autocast(recipe: Recipe) -> bool:
    """Whether the recipe computes in float32 on a device that multiplies faster in bfloat16."""
    model = recipe.model
    if model.dtype != "float32" or model.autocast or model.quantize:
        return False
    return matmul_rate(_local_device(), True) > matmul_rate(_local_device(), False)


def extra_calls(recipe: Recipe, num_problems: int | None) -> dict[str, int]:
    """The most rows x forward passes of a run besides its steps: anchors, evaluations and rollouts to compare."""
    settings, spatial, nfe = recipe.training, recipe.pruning.spatial, recipe.sampler.steps
    rows = settings.prompts_per_step * settings.num_generations
    calls: dict[str, int] = {}
    if spatial.ratio > 0 and num_problems is not None:
        if spatial.source == "pregenerated" and not spatial.path:
            calls["anchors"] = num_problems * (nfe + (spatial.confidence == "fully_masked"))
        elif spatial.source in ("ground_truth", "file"):
            calls["anchors"] = num_problems  # one forward pass for the confidence of each token
    if settings.evaluate_every:
        calls["evaluations"] = settings.steps // settings.evaluate_every * settings.evaluate_problems * nfe
    if settings.unpruned_every:
        calls["unpruned rollouts"] = settings.steps // settings.unpruned_every * rows * nfe
    if settings.agreement_every and recipe.sampler.approximate:
        calls["exact rollouts"] = settings.steps // settings.agreement_every * max_step_cost(recipe).rollout
    return calls


def _problems(recipe: Recipe) -> Sequence[Problem] | None:
    """The training problems; None if they cannot be read."""
    try:
        return recipe.task.problems("train")
    except StipuleError:
        return None


def _seconds(
    recipe: Recipe,
    options: PlanOptions,
    config_json: Mapping[str, Any],
    flops: StepFlops,
    shape: NetworkShape,
    prompt_shape: PromptShape,
    progress: Callable[[str], None],
) -> StepSeconds | None:
    if options.device is not None:
        return from_data_sheet(recipe, flops, shape, options.device)
    if not options.measure:
        return None
    progress("measuring this device")
    length, padded = prompt_shape.tokens, prompt_shape.padded
    return measure_seconds(recipe, config_json, flops, shape, length, padded, _local_device())


def _local_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device_memory() -> int | None:
    """Bytes of this machine's accelerator; None on a CPU, whose memory is shared with other programs."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
