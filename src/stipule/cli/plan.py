"""`stipule plan`: predicts time and memory of a recipe before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from stipule.cli.app import Overrides, RecipePath, app, console, print_warnings


@app.command(
    epilog="Examples:  stipule plan quickstart  ·  stipule plan llada-8b/math_grpo_elbo_stp --device a100  ·  "
    "stipule plan llada-8b/math_grpo_elbo_stp --memory 24GB --no-measure  ·  "
    "stipule plan paper/table2_math_stp --device h100 --gpus 8 --nodes 2"
)
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices of each node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    memory: Annotated[str | None, typer.Option(help="Memory of each device, e.g. 80GB.")] = None,
    engine: Annotated[str | None, typer.Option(help="ddp, fsdp2, fsdp2_node or zero3. Default: all of them.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure the speed of this device, about 10 s.")
    ] = True,
    device: Annotated[
        str | None, typer.Option(help="Predict for a device from its data sheet: h100, a100, a800, h200, rtx4090, ...")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="The model's config.json.")] = None,
    prompt: Annotated[int | None, typer.Option(help="Length of the prompts in tokens.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """Predict model calls, operations, peak memory and seconds of a step, on one device or many; loads no weights."""
    from dataclasses import asdict

    from stipule.atomic_io import replace_file
    from stipule.config.recipe import load_recipe
    from stipule.errors import RecipeError
    from stipule.plan.devices import bytes_of, device_named
    from stipule.plan.forecast import PlanOptions, forecast
    from stipule.plan.scaling import ENGINES, Engine
    from stipule.report.plan_table import plan_tables
    from stipule.report.progress import parts

    if engine is not None and engine not in ENGINES:
        raise RecipeError(f"--engine is {engine!r}; it must be one of {', '.join(ENGINES)}")
    resolved = load_recipe(recipe, overrides or [])
    options = PlanOptions(
        gpus,
        nodes,
        bytes_of(memory) if memory else None,
        cast("Engine | None", engine),
        measure,
        device_named(device) if device else None,
        config,
        prompt,
    )
    with parts(console, "planning") as progress:
        result = forecast(resolved, options, progress)
    console.print(plan_tables(resolved, result))
    if device is None and memory is None:  # a plan for this machine
        print_warnings(resolved)
    if json_file:
        numbers: dict[str, Any] = asdict(result)
        replace_file(json_file, lambda p: p.write_text(json.dumps(numbers, indent=1) + "\n"))
