"""Commands that hand a model on: `export` out of here, `convert-adapter` into here."""

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
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Fold the adapters into the base: one model, no peft.")
    ] = False,
    layout: Annotated[
        Literal["published", "stock"],
        typer.Option(help="published: the base's own names; stock: transformers' names, no code beside it."),
    ] = "published",
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Also upload to this hub repository.")] = None,
) -> None:
    """Write a folder that transformers loads: weights, tokenizer, model card with recipe and result."""
    from stipule.commands.export import export as run_export
    from stipule.commands.export import upload

    with console.status("exporting"):
        said = run_export(run, out, merge, layout)
    console.print(f"{out}: {said}", markup=False, highlight=False)
    if push:
        with console.status(f"uploading to {push}"):
            address = upload(out, push)
        console.print(address, markup=False, highlight=False)


@app.command(
    "convert-adapter",
    epilog="Example:  stipule convert-adapter d1/checkpoint-7500 adapters/d1 --base GSAI-ML/LLaDA-8B-Instruct, then "
    "stipule eval adapters/d1 --task gsm8k",
)
def convert_adapter(
    adapter: Annotated[Path, typer.Argument(metavar="IN", help="A LoRA folder as d1, SPG or wd1 write it.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet.")],
    base: Annotated[str, typer.Option("--base", help="The model it was trained on: a folder or a hub name.")],
) -> None:
    """Rename a published LoRA file to the names used here; every key must find its place."""
    from stipule.commands.export import convert

    tensors, modules = convert(adapter, out, base)
    console.print(
        f"{out}: {tensors} tensors on {', '.join(modules)}; try: stipule eval {out} --task countdown",
        markup=False,
        highlight=False,
    )
