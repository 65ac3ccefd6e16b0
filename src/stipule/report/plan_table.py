"""What `stipule plan` prints."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stipule.plan.forecast import Forecast
from stipule.plan.scaling import ENGINES, ScalingForecast
from stipule.training.cost import is_upper_bound
from stipule.training.settings import Recipe

GIB = 2**30


def plan_tables(recipe: Recipe, found: Forecast) -> RenderableType:
    """Work, memory, seconds and scaling, each with what it rests on."""
    pieces: list[RenderableType] = [_head(recipe, found), _work(found), _memory(recipe, found)]
    if found.seconds is not None:
        pieces.append(_seconds(recipe, found))
    if found.scaling:
        pieces += [_spreads(found.scaling), _curve(found.scaling_curve)]
    return Group(*pieces)


def _below(table: Table, words: str) -> Group:
    """A table with a line under it, not squeezed into its width."""
    return Group(table, Text(words + "\n", style="dim"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _head(recipe: Recipe, found: Forecast) -> Text:
    shape, settings = found.shape, recipe.training
    rows = settings.prompts_per_step * settings.num_generations
    return Text(
        f"{recipe.model.path}: {shape.parameters:,} parameters, {shape.trained:,} trained; sizes from {found.source}\n"
        f"a step: {settings.prompts_per_step} problems x {settings.num_generations} = {rows} responses of {recipe.sampler.gen_length} tokens "
        f"after prompts of {found.prompt_shape.tokens} ({found.prompt_shape.source}), {settings.num_iterations} updates\n"
        "counted for responses of full length; less where rows end early or have no advantage\n"
        + ("confidence or difficulty decides by row: rollout calls are the most it takes\n" * is_upper_bound(recipe))
    )


def _work(found: Forecast) -> Group:
    table = _table("Work of one RL step", "part", "row calls", "tokens", "to the head", "body", "attention", "head")
    for name, part in found.flops.phases.items():
        operations = [f"{x / 1e12:.4g}" for x in (part.backbone, part.attention, part.head)]
        table.add_row(name, f"{part.calls:,}", f"{part.tokens:,}", f"{part.head_tokens:,}", *operations)
    return _below(table, f"operations in units of 10^12; {found.flops.operations / 1e12:,.4g} in all")


def _memory(recipe: Recipe, found: Forecast) -> Group:
    peaks = found.peaks
    table = _table("Peak memory of a step", "what", "GiB")
    for name in ("weights", "adapters", "gradients", "optimizer", "reference"):
        if amount := getattr(peaks, name):
            table.add_row(name, f"{amount / GIB:.3f}")
    table.add_section()
    for name in ("rollout", "logps", "update", "optimizer_step"):
        table.add_row(f"most during {name.replace('_', ' ')}", f"{getattr(peaks, name) / GIB:.3f}")
    table.add_section()
    table.add_row("needed", f"{found.needed_memory / GIB:.3f}")
    cache = recipe.sampler.cache
    words = "no cache of keys and values is held: every call is a full forward"
    if cache is not None:
        words = f"the {cache.kind} cache of keys and values is in the rollout; its calls are counted as full forwards"
    if found.budget is not None:
        table.add_row("the device has", f"{found.budget / GIB:.3f}")
        if found.remedy is None:
            words += "; it fits"
        elif found.remedy.fits:
            words += f"; it does not fit, but does with: {' '.join(found.remedy.settings)} "
            words += f"({found.remedy.needed_bytes / GIB:.1f} GiB)"
        else:
            words += f"; it does not fit, and not even with: {' '.join(found.remedy.settings)} "
            words += f"({found.remedy.needed_bytes / GIB:.1f} GiB); shard it over more devices: --gpus 8 --engine fsdp2"
    return _below(table, words)


def _seconds(recipe: Recipe, found: Forecast) -> Group:
    seconds = found.seconds
    assert seconds is not None
    table = _table("Seconds on one device", "part", "seconds", "of the matmul rate")
    for name, part in found.flops.phases.items():
        spent = getattr(seconds, name)
        share = f"{part.operations / spent / seconds.matmul:.0%}" if spent else ""
        table.add_row(name, f"{spent:,.3f}", share)
    table.add_section()
    table.add_row("a step", f"{seconds.step:,.3f}", "")
    if found.in_bfloat16:
        table.add_row("the same, model.autocast=true", f"{found.in_bfloat16.step:,.3f}", "")
    for name, calls in found.extra_calls.items():
        table.add_row(f"{name} in a run", f"{calls * seconds.rollout / found.flops.rollout.calls:,.1f}", "")
    steps = recipe.training.steps
    run = found.run_seconds(steps)
    table.add_row(f"a run of {steps} steps", f"{run:,.1f} ({run / 3600:,.1f} h)", "")
    return _below(table, f"{seconds.source}; matmul rate {seconds.matmul / 1e12:.3g} x 10^12 operations a second")


def _spreads(spreads: list[ScalingForecast]) -> Group:
    title = f"{spreads[0].devices} devices, a step's groups dealt out over them"
    table = _table(title, "engine", "s a step", "computing", "sending", "GiB each", "efficiency", "dominated by")
    for found in spreads:
        table.add_row(
            f"{found.engine}: {ENGINES[found.engine]}",
            f"{found.seconds:,.2f}",
            f"{found.compute:,.2f}",
            f"{found.communication:,.2f}",
            f"{found.memory / GIB:.1f}",
            f"{found.efficiency:.0%}",
            found.dominates,
        )
    return _below(table, "gathering weights overlaps with computing, reducing gradients does not; docs/scaling.md")


def _curve(curve: list[ScalingForecast]) -> Group:
    table = _table(f"{curve[0].engine}: where it stops", "devices", "s a step", "efficiency")
    for found in curve:
        table.add_row(str(found.devices), f"{found.seconds:,.2f}", f"{found.efficiency:.0%}")
    return _below(table, "groups never cross devices, so a step has no use for more devices than problems")
