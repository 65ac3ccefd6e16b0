"""`stipule export`: writes a trained model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stipule.cli.app import app, console


@app.command(
    epilog="Examples:  stipule export runs/a models/a --merge  ·  "
    "stipule export runs/a models/a --merge --layout stock  ·  stipule export runs/a models/a --push me/llada-countdown"
)
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder (its newest checkpoint), or a model folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist yet.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the adapters into the base weights: one model, no peft.")
    ] = False,
    layout: Annotated[
        Literal["published", "stock"],
        typer.Option(
            help="published: parameter names of the base model; stock: those of transformers, no custom code."
        ),
    ] = "published",
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Also upload to this hub repository.")] = None,
) -> None:
    """Write a folder that transformers loads: weights, tokenizer, model card with recipe and result."""
    from stipule.commands.export import export as run_export
    from stipule.commands.export import upload
    from stipule.report.progress import parts

    with parts(console, "exporting"):
        summary = run_export(run, out, merge, layout)
    console.print(f"{out}: {summary}", markup=False, highlight=False)
    if push:
        with parts(console, f"uploading to {push}"):
            address = upload(out, push)
        console.print(address, markup=False, highlight=False)
