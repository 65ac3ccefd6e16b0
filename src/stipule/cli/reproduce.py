"""`stipule reproduce`: trains the rows of the paper's tables on a small testbed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from stipule.cli.app import app, console, interruptible


@app.command(
    epilog="Examples:  stipule reproduce table5  ·  stipule reproduce table7 figure3 --seeds 3 --jobs 1  ·  "
    "stipule reproduce table5 --published-code  ·  stipule reproduce frontier --rows elbo,stp --seeds 1  ·  "
    "stipule reproduce table5 --scale llada-8b"
)
def reproduce(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE...",
            help="table2 ... table7, figure3, or all of these; published: where the authors' code differs; tail: how "
            "temporal pruning fills the last tokens; frontier: accuracy against cost of every way to save.",
        ),
    ],
    scale: Annotated[
        Literal["tiny", "llada-8b"], typer.Option(help="llada-8b prints the commands to run on GPUs.")
    ] = "tiny",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row; rows are paired by seed.")] = 5,
    testbed: Annotated[
        str | None,
        typer.Option(
            "--world",
            help="The testbed: a recipe in recipes/reproduce, or a YAML file. Default: sudoku; of frontier: "
            "sudoku_worked.",
        ),
    ] = None,
    published_code: Annotated[
        bool,
        typer.Option("--published-code", help="Train each row a second time, as the paper's authors run it."),
    ] = False,
    only: Annotated[
        str, typer.Option("--rows", metavar="NAME,...", help="Only these rows of the tables, e.g. elbo,stp.")
    ] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once, one core each. Default: all cores.")] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of runs and tables; run again, the same command continues.")
    ] = Path("runs/reproduce"),
) -> None:
    """Train rows of the paper's tables on a small testbed, beside the paper's numbers, and check each claim."""
    from stipule.report.progress import bar
    from stipule.reproduce.catalogue import rows_of, table_of
    from stipule.reproduce.paper import PAPER_TABLES
    from stipule.reproduce.runs import check_rows, run_all

    names = list(PAPER_TABLES) if tables == ["all"] else tables
    rows_by_testbed: dict[str, dict[str, None]] = {}
    chosen = tuple(filter(None, only.split(",")))
    for name in names:
        rows_by_testbed.setdefault(testbed or table_of(name).testbed, {}).update(
            dict.fromkeys(rows_of(name, published_code, chosen))
        )
    if scale == "llada-8b":
        _print_gpu_commands(names)
        return
    for used_testbed, rows in rows_by_testbed.items():
        check_rows(tuple(rows), used_testbed)
    kept = "finished runs are kept, and the others up to their last checkpoint"
    with interruptible(kept, "the same command continues"), bar(console, f"{', '.join(names)}: runs") as progress:
        for used_testbed, rows in rows_by_testbed.items():
            run_all(tuple(rows), used_testbed, seeds, out, jobs or os.cpu_count() or 1, progress)
    for name in names:
        _write_table(name, testbed or table_of(name).testbed, seeds, out, published_code, chosen)


def _write_table(name: str, testbed: str, seeds: int, out: Path, published_code: bool, only: tuple[str, ...]) -> None:
    """Prints a table from its finished runs, and writes it as Markdown, JSON and, where there is one, a figure."""
    from stipule.report.frontier_figure import accuracy_against_cost
    from stipule.report.reproduction_figure import variance_over_training
    from stipule.report.reproduction_table import reproduction_page, reproduction_tables
    from stipule.reproduce.tables import reproduction

    result = reproduction(name, testbed, seeds, out, published_code, only)
    path = out / Path(testbed).stem / (name + "_published_code" * published_code)
    command = f"stipule reproduce {name} --seeds {seeds} --world {testbed}" + " --published-code" * published_code
    command += f" --rows {','.join(only)}" * bool(only)
    _write(path.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    _write(path.with_suffix(".md"), reproduction_page(result, command))
    console.print(reproduction_tables(result))
    written = [f"{path}.md", f"{path}.json"]
    figures = {"figure3": variance_over_training, "frontier": accuracy_against_cost}
    if name in figures:
        figures[name](result, path.with_suffix(".png"))
        written.append(f"{path}.png")
    console.print(", ".join(written))


def _write(path: Path, text: str) -> None:
    from stipule.atomic_io import replace_file

    replace_file(path, lambda p: p.write_text(text))


def _print_gpu_commands(names: list[str]) -> None:
    """Prints the command of each row on LLaDA-8B, with the model calls of a step."""
    from stipule.config.recipe import load_recipe, recipe_folder
    from stipule.training.cost import step_cost

    for name in names:
        for recipe in sorted((recipe_folder() / "paper").glob(f"{name}_*.yaml")):
            cost = step_cost(load_recipe(str(recipe)))
            console.print(
                f"stipule train recipes/paper/{recipe.name}    # {cost.total:,} rows x model calls per step; "
                f"hours and memory: stipule plan recipes/paper/{recipe.name} --device a800",
                soft_wrap=True,
            )
