"""The command's root, what commands share of their arguments, and where they print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(
    help="Reinforcement learning for masked diffusion language models, with Spatio-Temporal Pruning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
# A pipe or a file has no width: 80 columns would break paths and tables.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. training.steps=20.")
]
RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model folder, a run folder (its newest checkpoint), a hub name, or tiny/..."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out, bit for bit.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Short for training.seed=SEED.")]


def free_place(place: Path) -> Path:
    """The place, or the first numbered one beside it that is free: a second quickstart overwrites nothing."""
    number, candidate = 1, place
    while candidate.exists():
        number += 1
        candidate = place.with_name(f"{place.name}-{number}")
    return candidate
