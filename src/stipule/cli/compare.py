"""`stipule compare`: paired differences between evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stipule.cli.app import app, console


@app.command(
    epilog="Examples:  stipule compare runs/before runs/after  ·  "
    "stipule compare runs/a-0,runs/a-1,runs/a-2 runs/b-0,runs/b-1,runs/b-2"
)
def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(metavar="A B [...]", help="Evaluation folders; the seeds of one method joined by commas."),
    ],
    across: Annotated[
        bool, typer.Option("--across-settings", help="Compare even if task, split, sampler or protocol differ.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """Compare evaluations with the first one on the same problems: paired differences, intervals, exact tests."""
    from stipule.atomic_io import replace_file
    from stipule.evaluation.compare import compare_all
    from stipule.report.comparison_table import comparison_table

    rows = compare_all([[Path(path) for path in method.split(",")] for method in evaluations], across)
    console.print(comparison_table(rows))
    if json_file:
        replace_file(json_file, lambda p: p.write_text(json.dumps(rows, indent=2) + "\n"))
