"""The root of the command line, arguments that several commands have, and the console they print to."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
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
# A pipe or a file has no width: the default of 80 columns would break paths and tables.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, e.g. training.steps=20.")
]
RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, a run folder (its newest checkpoint), a hub name, or a bundled model: tiny/sudoku.",
    ),
]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Run folders, shown in the same charts.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out; the result equals that of an uninterrupted run.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Short for training.seed=SEED.")]


def unused_path(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`, ... if it exists, so that a second run overwrites nothing."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def with_seed(overrides: Sequence[str] | None, seed: int | None) -> list[str]:
    """The overrides, and that of `--seed` after them."""
    return [*(overrides or []), *([] if seed is None else [f"training.seed={seed}"])]


def run_until_interrupted(
    run: Callable[[], object], command: Sequence[str], overrides: Sequence[str] | None, seed: int | None, out: Path
) -> None:
    """Calls `run`. On Ctrl-C it prints the command that resumes the run, and exits with 130."""
    try:
        run()
    except KeyboardInterrupt as interrupt:
        from stipule.training.distributed import is_main_process
        from stipule.training.interrupt import Interrupted

        if not is_main_process():
            raise typer.Exit(130) from interrupt
        typed = ["stipule", *command, *(overrides or []), *(["--seed", str(seed)] if seed is not None else [])]
        status = "saved" if isinstance(interrupt, Interrupted) else "stopped; the last checkpoint is complete"
        console.print(
            f"{status}; continue with:\n  {' '.join(typed)} --out {out} --resume", markup=False, soft_wrap=True
        )
        raise typer.Exit(130) from interrupt
