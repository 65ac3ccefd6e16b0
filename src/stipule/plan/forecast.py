"""The forecast of a recipe: everything `stipule plan` prints, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from stipule.errors import RecipeError, StipuleError
from stipule.models.families import family_of
from stipule.models.loading import _load_tokenizer, resolve_model_path
from stipule.plan.devices import DEVICES, Device
from stipule.plan.dummy_model import dummy_policy
from stipule.plan.flops import StepFlops, count_flops
from stipule.plan.memory_budget import Remedy, needed_memory, remedy
from stipule.plan.memory_simulation import PeakMemory, simulate_memory
from stipule.plan.scaling import ENGINES, Engine, ScalingForecast, check_division, forecast_scaling, scaling_curve
from stipule.plan.shape import NetworkShape, published_config, shape_of
from stipule.plan.speed import StepSeconds, from_data_sheet, matmul_rate, measure_seconds
from stipule.tasks.problem import Problem
from stipule.training.settings import Recipe

PROMPT = 200  # tokens, where the task's prompts cannot be encoded here: what SPG cuts them to
SAMPLE = 64  # prompts encoded to learn their length


@dataclass(frozen=True)
class PlanOptions:
    """What a user wants to know; the options of `stipule plan`."""

    gpus: int = 1
    nodes: int = 1
    memory: int | None = None  # bytes of a device
    engine: Engine | None = None
    measure: bool = True
    device: Device | None = None
    config: Path | None = None
    prompt: int | None = None


@dataclass(frozen=True)
class PromptShape:
    """The prompts of a step: their width in tokens, whether they differ, and how many problems a visit takes."""

    tokens: int
    padded: bool
    problems: int | None
    source: str


@dataclass(frozen=True)
class Forecast:
    """What a recipe will need."""

    source: str
    shape: NetworkShape
    prompt_shape: PromptShape
    flops: StepFlops
    peaks: PeakMemory
    needed_memory: int
    budget: int | None
    remedy: Remedy | None
    seconds: StepSeconds | None
    in_bfloat16: StepSeconds | None  # measured with model.autocast=true, where this device multiplies faster so
    extra_calls: dict[str, int]  # rows x calls of a whole run besides its steps
    scaling: list[ScalingForecast] = field(default_factory=list)
    scaling_curve: list[ScalingForecast] = field(default_factory=list)

    def run_seconds(self, steps: int) -> float:
        """Seconds of the whole run on one device."""
        assert self.seconds is not None
        call = self.seconds.rollout / self.flops.rollout.calls
        return steps * self.seconds.step + call * sum(self.extra_calls.values())


def forecast(recipe: Recipe, asked: PlanOptions, say: Callable[[str], None] = lambda words: None) -> Forecast:
    """Counts, rehearses, measures and spreads a recipe; `say` is told what is being done.

    Raises RecipeError for options that do not fit together, CheckpointError if the model's sizes are not known.
    """
    devices = asked.gpus * asked.nodes
    if devices > 1:
        check_division(recipe, devices)
    published, source = published_config(recipe.model.path, asked.config)
    shape = shape_of(published, recipe.model.lora)
    say("reading prompts")
    prompting = prompts_of_task(recipe, published, asked.prompt)
    say("counting")
    accelerator = asked.device is not None or asked.memory is not None or torch.cuda.is_available()
    work = count_flops(recipe, shape, prompting.tokens)
    say("rehearsing a step without contents")
    arguments = (recipe, published, prompting.tokens, prompting.padded, accelerator)
    peaks = simulate_memory(*arguments)
    budget = asked.memory or (asked.device.memory if asked.device else _device_memory())
    change = None
    if budget is not None and needed_memory(peaks, accelerator) > budget:
        say("looking for settings that fit")
        change = remedy(*arguments, budget)
    seconds = _seconds(recipe, asked, published, work, shape, prompting, say)
    low = None
    if asked.measure and asked.device is None and may_autocast(recipe):
        lower = replace(recipe, model=replace(recipe.model, autocast=True))
        low = _seconds(lower, asked, published, work, shape, prompting, say)
    spreads: list[ScalingForecast] = []
    along: list[ScalingForecast] = []
    if devices > 1:
        sheet = asked.device or DEVICES["a100"]
        if seconds is None:
            seconds = from_data_sheet(recipe, work, shape, sheet)
        parts: dict[str, Any] = {
            "work": work, "shape": shape, "peaks": peaks, "whole": seconds, "device": sheet
        }  # fmt: skip
        engines = [asked.engine] if asked.engine else list(ENGINES)
        spreads = [forecast_scaling(e, recipe, gpus=asked.gpus, nodes=asked.nodes, **parts) for e in engines]
        along = scaling_curve(recipe, asked.gpus, engine=engines[0], **parts)
    return Forecast(
        source, shape, prompting, work, peaks, needed_memory(peaks, accelerator), budget, change, seconds,
        low, extra_calls(recipe, prompting.problems), spreads, along,
    )  # fmt: skip


def prompts_of_task(recipe: Recipe, published: Mapping[str, Any], given: int | None) -> PromptShape:
    """Encodes a sample of the training prompts where model folder and problems are on this machine."""
    count = getattr(recipe.task, "train_problems", None)
    several = recipe.training.prompts_per_step > 1
    if given is not None:
        if given < 1:
            raise RecipeError(f"--prompt is {given}; it is the prompts' width in tokens; try {PROMPT}")
        return PromptShape(given, several, count, "as given")
    place = resolve_model_path(recipe.model.path)
    problems = _problems(recipe) if Path(place).is_dir() else None  # neither weights nor data are downloaded to plan
    if problems is None:
        return PromptShape(PROMPT, several, count, "assumed; give --prompt if yours are longer")
    policy = dummy_policy(published, recipe.model, "meta", layers=1)
    policy.tokenizer = _load_tokenizer(place, family_of(published).read_config(published))
    at_once, count = recipe.training.prompts_per_step, len(problems)
    sample = problems[: max(1, SAMPLE // at_once) * at_once]
    lengths = [policy.encode([problem.messages]).prompt_ids.shape[1] for problem in sample]
    batches = [lengths[i : i + at_once] for i in range(0, len(lengths), at_once)]
    return PromptShape(
        round(mean(map(max, batches))),
        any(min(batch) < max(batch) for batch in batches),
        count,
        f"of {len(sample)} training prompts",
    )


def may_autocast(recipe: Recipe) -> bool:
    """Whether the recipe computes in float32 on a device that multiplies faster in bfloat16."""
    model = recipe.model
    if model.dtype != "float32" or model.autocast or model.quantize:
        return False
    return matmul_rate(_here(), True) > matmul_rate(_here(), False)


def extra_calls(recipe: Recipe, problems: int | None) -> dict[str, int]:
    """Rows x model calls of a run besides its steps: anchors made beforehand, evaluations, audits."""
    settings, spatial, calls = recipe.training, recipe.pruning.spatial, recipe.sampler.steps
    found: dict[str, int] = {}
    if spatial.ratio > 0 and spatial.source == "pregenerated" and not spatial.path and problems is not None:
        found["anchors"] = problems * calls
    if settings.evaluate_every:
        found["evaluations"] = settings.steps // settings.evaluate_every * settings.evaluate_problems * calls
    if settings.unpruned_every:
        found["audits"] = (
            settings.steps // settings.unpruned_every * settings.prompts_per_step * settings.num_generations * calls
        )
    return found


def _problems(recipe: Recipe) -> Sequence[Problem] | None:
    """The training problems, or None where they must be fetched and cannot be."""
    try:
        return recipe.task.problems("train")
    except StipuleError:
        return None


def _seconds(
    recipe: Recipe,
    asked: PlanOptions,
    published: Mapping[str, Any],
    work: StepFlops,
    shape: NetworkShape,
    prompting: PromptShape,
    say: Callable[[str], None],
) -> StepSeconds | None:
    if asked.device is not None:
        return from_data_sheet(recipe, work, shape, asked.device)
    if not asked.measure:
        return None
    say("measuring this device")
    return measure_seconds(recipe, published, work, shape, prompting.tokens, prompting.padded, _here())


def _here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device_memory() -> int | None:
    """Bytes of this machine's accelerator; None on a CPU, whose memory is shared with everything else."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
