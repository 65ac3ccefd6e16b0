"""`stipule variance`: the variance of ELBO estimates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stipule.cli.app import Out, Overrides, RecipePath, app, console, interruptible, unused_path


@app.command(
    epilog="Examples:  stipule variance quickstart  ·  stipule variance quickstart pruning.spatial.keep=random "
    "--responses 64 --draws 256 --steps 0"
)
def variance(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    responses: Annotated[int, typer.Option(help="Responses measured.")] = 32,
    draws: Annotated[int, typer.Option(help="Independent estimates of each response.")] = 128,
    steps: Annotated[int, typer.Option(min=0, help="RL steps trained with and without pruning for figure 3a.")] = 12,
) -> None:
    """Measure the variance of ELBO estimates by pruning, masks, estimator and update; writes tables, JSON, a figure."""
    from stipule.atomic_io import replace_file, require_unused
    from stipule.commands.variance_study import variance_study
    from stipule.config.recipe import load_recipe
    from stipule.file_lock import sole_writer
    from stipule.report.progress import parts
    from stipule.report.variance_figure import variance_figure
    from stipule.report.variance_table import variance_tables

    resolved = load_recipe(recipe, overrides or [])
    path = out or unused_path(Path("runs") / f"{Path(recipe).stem}-variance")
    require_unused(path)
    with (
        interruptible("a study keeps no part of its tables", "start it again with another --out"),
        sole_writer(path),
        parts(console, "measuring", total=7 if steps else 5) as progress,
    ):
        result = variance_study(resolved, responses, draws, steps, path, progress)
    console.print(variance_tables(result))
    replace_file(path / "variance.json", lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))
    variance_figure(result, path / "variance.png")
    console.print(f"{path}/variance.json and {path}/variance.png")
