"""The command that runs the paper's tables again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from stipule.cli.app import app, console


@app.command(
    epilog="Examples:  stipule reproduce table5  ·  stipule reproduce table7 figure3 --seeds 3 --jobs 1  ·  "
    "stipule reproduce table5 --scale llada-8b"
)
def reproduce(
    tables: Annotated[list[str], typer.Argument(metavar="TABLE...", help="table2 ... table7, figure3, or all.")],
    scale: Annotated[
        Literal["tiny", "llada-8b"], typer.Option(help="llada-8b prints the commands to run on GPUs.")
    ] = "tiny",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row; paired between rows.")] = 5,
    world: Annotated[str, typer.Option(help="A recipe in recipes/reproduce, or a YAML file.")] = "sudoku",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once, a core each; default: all cores.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Where runs and tables lie; run again, it goes on.")] = Path(
        "runs/reproduce"
    ),
) -> None:
    """Run rows of the paper's tables in a small world, beside its own numbers, with a verdict for each claim."""
    from stipule.config.recipe import load_recipe
    from stipule.report.live import bar
    from stipule.report.reproduction_figure import variance_over_training
    from stipule.report.reproduction_table import reproduction_page, reproduction_tables
    from stipule.reproduce.paper import TABLES, table_of
    from stipule.reproduce.runs import recipe_of, run_all
    from stipule.reproduce.tables import reproduction

    wanted = list(TABLES) if tables == ["all"] else tables
    rows = tuple(dict.fromkeys(row for name in wanted for row in table_of(name).rows))
    if scale == "llada-8b":
        _on_gpus(wanted)
        return
    load_recipe(recipe_of(world))
    with bar(console, f"{', '.join(wanted)}: runs") as progress:
        run_all(rows, world, seeds, out, jobs or os.cpu_count() or 1, progress)
    for name in wanted:
        found = reproduction(name, world, seeds, out)
        place = out / Path(world).stem / name
        command = f"stipule reproduce {name} --seeds {seeds} --world {world}"
        _write(place.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
        _write(place.with_suffix(".md"), reproduction_page(found, command))
        console.print(reproduction_tables(found))
        written = [f"{place}.md", f"{place}.json"]
        if name == "figure3":
            variance_over_training(found, place.with_suffix(".png"))
            written.append(f"{place}.png")
        console.print(", ".join(written))


def _write(path: Path, text: str) -> None:
    from stipule.atomic_io import replace_file

    replace_file(path, lambda place: place.write_text(text))


def _on_gpus(wanted: list[str]) -> None:
    """Prints the rows' recipes on LLaDA-8B, with the calls of a step."""
    from stipule.config.recipe import load_recipe, recipe_folder
    from stipule.training.cost import step_cost

    for name in wanted:
        for recipe in sorted((recipe_folder() / "paper").glob(f"{name}_*.yaml")):
            cost = step_cost(load_recipe(str(recipe)))
            console.print(
                f"stipule train recipes/paper/{recipe.name}    # {cost.total:,} rows x model calls a step; "
                f"hours and memory: stipule plan recipes/paper/{recipe.name} --device a800",
                soft_wrap=True,
            )
