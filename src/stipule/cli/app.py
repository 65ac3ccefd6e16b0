"""The root of the command line, arguments that several commands have, and the console they print to."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from stipule.training.settings import Recipe

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
        help="A model folder, a run folder (its newest checkpoint), a hub name, or a bundled model: tiny/sudoku, "
        "tiny/sudoku_worked, tiny/block_sudoku.",
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


def print_warnings(recipe: Recipe) -> None:
    """Prints what a run of the recipe should be warned of, a line each."""
    from stipule.training.setup import startup_warnings

    for warning in startup_warnings(recipe):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def with_seed(overrides: Sequence[str] | None, seed: int | None) -> list[str]:
    """The overrides, and that of `--seed` after them."""
    return [*(overrides or []), *([] if seed is None else [f"training.seed={seed}"])]


def resume_command(command: Sequence[str], overrides: Sequence[str] | None, seed: int | None, out: Path) -> str:
    """The command line that continues a run."""
    typed = ["stipule", *command, *(overrides or []), *(["--seed", str(seed)] if seed is not None else [])]
    return f"{' '.join(typed)} --out {out} --resume"


@contextmanager
def interruptible(kept: str, continuation: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the command with a message and exit status 130 or 143.

    `kept` says what is left of the work, `continuation` what to do next.
    """
    from stipule.training.interrupt import Interrupted, Terminated, sigterm_raises

    try:
        with sigterm_raises():
            yield
    except KeyboardInterrupt as interrupt:
        from stipule.training.distributed import is_main_process

        number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
        if isinstance(interrupt, Interrupted):
            number = signal.Signals(interrupt.number)
        if is_main_process():
            status = "saved" if isinstance(interrupt, Interrupted) else f"stopped; {kept}"
            console.print(f"{status}; {continuation}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(128 + number) from interrupt
