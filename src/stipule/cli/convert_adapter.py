"""`stipule convert-adapter`: makes a published LoRA adapter loadable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stipule.cli.app import app, console


@app.command(
    "convert-adapter",
    epilog="Example:  stipule convert-adapter d1/checkpoint-7500 adapters/d1 --base GSAI-ML/LLaDA-8B-Instruct, then "
    "stipule eval adapters/d1 --task gsm8k",
)
def convert_adapter(
    adapter: Annotated[Path, typer.Argument(metavar="IN", help="A LoRA folder written by d1, SPG or wd1.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that does not exist yet.")],
    base: Annotated[str, typer.Option("--base", help="The model it was trained on: a folder or a hub name.")],
) -> None:
    """Rename the tensors of a published LoRA adapter to the names used here; an unknown tensor is an error."""
    from stipule.commands.export import convert

    tensors, modules = convert(adapter, out, base)
    console.print(
        f"{out}: {tensors} tensors on {', '.join(modules)}; try: stipule eval {out} --task countdown",
        markup=False,
        highlight=False,
    )
