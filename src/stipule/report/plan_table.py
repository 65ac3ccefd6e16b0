"""The tables of `stipule plan`."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stipule.plan.forecast import Forecast
from stipule.plan.scaling import ENGINES, ScalingForecast
from stipule.report.cost_table import expectation_note
from stipule.training.settings import Recipe

GIB = 2**30


def plan_tables(recipe: Recipe, forecast: Forecast) -> RenderableType:
    """Operations, memory, seconds and scaling, each with its source."""
    renderables: list[RenderableType] = [
        _header(recipe, forecast), _flops_table(forecast), _memory_table(recipe, forecast)
    ]  # fmt: skip
    if forecast.seconds is not None:
        renderables.append(_seconds_table(recipe, forecast))
    if forecast.scaling:
        renderables += [_scaling_table(forecast.scaling), _curve_table(forecast.scaling_curve)]
    return Group(*renderables)


def _with_note(table: Table, note: str) -> Group:
    """A table with a line below it that may be wider than the table."""
    return Group(table, Text(note + "\n", style="dim"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _header(recipe: Recipe, forecast: Forecast) -> Text:
    shape, settings, prompts = forecast.shape, recipe.training, forecast.prompt_shape
    rows = settings.prompts_per_step * settings.num_generations
    return Text(
        f"{recipe.model.path}: {shape.parameters:,} parameters, {shape.trained:,} trained; sizes from "
        f"{forecast.source}\n"
        f"one step: {settings.prompts_per_step} prompts x {settings.num_generations} generations = {rows} rollouts of "
        f"{recipe.sampler.gen_length} tokens, prompts of {prompts.tokens} tokens ({prompts.source}), "
        f"{settings.num_iterations} inner updates\n" + expectation_note(recipe)
    )


def _flops_table(forecast: Forecast) -> Group:
    table = _table(
        "Expected operations of one RL step", "phase", "rows x forward passes", "at most", "tokens", "LM head tokens",
        "backbone", "attention", "LM head",
    )  # fmt: skip
    for name, phase in forecast.flops.phases.items():
        operations = [f"{x / 1e12:.4g}" for x in (phase.backbone, phase.attention, phase.head)]
        counts = (phase.calls, getattr(forecast.max_cost, name), phase.tokens, phase.head_tokens)
        table.add_row(name, *(f"{count:,.0f}" for count in counts), *operations)
    return _with_note(table, f"operations in units of 10^12; {forecast.flops.operations / 1e12:,.4g} in total")


def _memory_table(recipe: Recipe, forecast: Forecast) -> Group:
    memory = forecast.peaks
    table = _table("Peak memory of one RL step", "item", "GiB")
    for name in ("weights", "adapters", "gradients", "optimizer", "reference"):
        if num_bytes := getattr(memory, name):
            table.add_row(name, f"{num_bytes / GIB:.3f}")
    table.add_section()
    for name in ("rollout", "logps", "update", "optimizer_step"):
        table.add_row(f"peak during {name.replace('_', ' ')}", f"{getattr(memory, name) / GIB:.3f}")
    table.add_section()
    table.add_row("needed", f"{forecast.needed_memory / GIB:.3f}")
    cache = recipe.sampler.cache
    note = "no KV cache: every forward pass computes all tokens"
    if cache is not None:
        counted = "with it" if cache.is_exact else "as without a cache"
        note = f"rollout includes the {cache.kind} KV cache; operations are counted {counted}"
    if forecast.budget is not None:
        table.add_row("memory of the device", f"{forecast.budget / GIB:.3f}")
        if forecast.remedy is None:
            note += "; it fits"
        elif forecast.remedy.fits:
            note += f"; it does not fit; it fits with: {' '.join(forecast.remedy.settings)} "
            note += f"({forecast.remedy.needed_bytes / GIB:.1f} GiB)"
        else:
            note += f"; it does not fit, not even with: {' '.join(forecast.remedy.settings)} "
            note += (
                f"({forecast.remedy.needed_bytes / GIB:.1f} GiB); shard it over more devices: --gpus 8 --engine fsdp2"
            )
    return _with_note(table, note)


def _seconds_table(recipe: Recipe, forecast: Forecast) -> Group:
    seconds = forecast.seconds
    assert seconds is not None
    table = _table("Seconds on one device", "phase", "seconds", "of the matmul rate")
    for name, phase in forecast.flops.phases.items():
        phase_seconds = getattr(seconds, name)
        utilization = f"{phase.operations / phase_seconds / seconds.matmul:.0%}" if phase_seconds else ""
        table.add_row(name, f"{phase_seconds:,.3f}", utilization)
    table.add_section()
    table.add_row("one step", f"{seconds.step:,.3f}", "")
    if forecast.in_bfloat16:
        table.add_row("one step with model.autocast=true", f"{forecast.in_bfloat16.step:,.3f}", "")
    for name, calls in forecast.extra_calls.items():
        table.add_row(f"{name} in a run", f"{calls * seconds.rollout / forecast.flops.rollout.calls:,.1f}", "")
    steps = recipe.training.steps
    run_seconds = forecast.run_seconds(steps)
    table.add_row(f"a run of {steps} steps", f"{run_seconds:,.1f} ({run_seconds / 3600:,.1f} h)", "")
    return _with_note(table, f"{seconds.source}; matmul rate {seconds.matmul / 1e12:.3g} x 10^12 operations per second")


def _scaling_table(forecasts: list[ScalingForecast]) -> Group:
    title = f"{forecasts[0].devices} devices that share the groups of a step"
    table = _table(
        title, "engine", "s per step", "computing", "communication", "GiB per device", "efficiency", "limited by"
    )
    for forecast in forecasts:
        table.add_row(
            f"{forecast.engine}: {ENGINES[forecast.engine]}",
            f"{forecast.seconds:,.2f}",
            f"{forecast.compute:,.2f}",
            f"{forecast.communication:,.2f}",
            f"{forecast.memory / GIB:.1f}",
            f"{forecast.efficiency:.0%}",
            forecast.dominates,
        )
    return _with_note(table, "gathering weights overlaps with computing, reducing gradients does not; docs/scaling.md")


def _curve_table(curve: list[ScalingForecast]) -> Group:
    table = _table(f"{curve[0].engine}: efficiency by number of devices", "devices", "s per step", "efficiency")
    for forecast in curve:
        table.add_row(str(forecast.devices), f"{forecast.seconds:,.2f}", f"{forecast.efficiency:.0%}")
    return _with_note(table, "a group is never split, so more devices than prompts per step do not help")
