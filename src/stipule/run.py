"""A run from Python: `train` starts or continues one, `Run` reads what its folder contains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

from stipule.atomic_io import make_folder, replace_file
from stipule.config.recipe import dump_recipe, load_recipe
from stipule.errors import RecipeError, StipuleError
from stipule.models.loading import best_device, load_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.report.live import LiveRun, stderr_console
from stipule.report.page.build import write_page
from stipule.report.page.run_reader import read_json_lines, read_run
from stipule.training.anchor_source import Watch
from stipule.training.checkpoint import newest_checkpoint
from stipule.training.distributed import is_main_process, wait_for_files
from stipule.training.loop import train as train_in_folder
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe
from stipule.training.setup import startup_warnings

if TYPE_CHECKING:
    import pandas


class Run:
    """The folder of a run, finished or not. Everything is read when it is asked for, so a run can be watched."""

    def __init__(self, path: Path | str):
        """Raises RecipeError if the folder is no run folder, CheckpointError if an earlier version wrote it."""
        self.path = Path(path)
        read_run(self.path, self.path.name)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.metrics)} steps)"

    @property
    def recipe(self) -> Recipe:
        """The settings, as the run was started or last continued with them."""
        return load_recipe(str(self.path / "recipe.yaml"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary for each RL step, in order (docs/metrics.md)."""
        return read_run(self.path, self.path.name).metrics

    def frame(self) -> pandas.DataFrame:
        """The metrics with the step as index. Raises StipuleError if pandas is not installed."""
        try:
            import pandas
        except ImportError as cause:
            raise StipuleError(
                "Run.frame makes a table of pandas, which is not installed; pip install pandas, or use Run.metrics, "
                "a list of dictionaries"
            ) from cause
        return pandas.DataFrame(self.metrics).set_index("step")

    def rollouts(self, step: int | None = None) -> list[dict[str, Any]]:
        """The saved responses of a step, by default of the last one that has some: text, reward, tokens of each.

        Raises RecipeError if none were saved for it.
        """
        rollout_files = read_run(self.path, self.path.name).rollout_files
        files = {int(file.stem.removeprefix("step-")): file for file in rollout_files}
        chosen = max(files, default=None) if step is None else step
        if chosen not in files:
            saved = f"of steps {', '.join(map(str, files))}" if files else "of no step"
            raise RecipeError(
                f"{self.path} has saved responses {saved}, not of {'any' if step is None else f'step {step}'}; "
                "training.rollouts_every decides which are saved"
            )
        return read_json_lines(files[chosen])[0]

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the newest checkpoint; None before the first."""
        return newest_checkpoint(self.path / "checkpoints")

    def load_policy(self) -> MaskedPolicy:
        """The model of the newest checkpoint, on the GPU if there is one. Raises CheckpointError if there is none."""
        return load_policy(str(self.path), device=best_device())

    def write_report(self, path: Path | str) -> Path:
        """Writes the page of `stipule report`, one HTML file."""
        write_page([self.path], Path(path))
        return Path(path)


def train(
    recipe: Recipe | Path | str,
    out: Path | str,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    show_progress: bool = True,
    watch: Watch = lambda event, data: None,
    files: Mapping[str, str] | None = None,
) -> Run:
    """`stipule train` from Python: the same loop and the same files, so equal recipes give equal runs, bit for bit.

    `recipe` is a Recipe, a YAML file, or the name of a shipped recipe; `overrides` are `section.key=value`. Raises
    RecipeError before a model is loaded if the recipe is wrong or `out` contains anything (unless `resume`).
    Warns of what `stipule train` warns of. `watch` gets each event of the loop (training/loop.py). `files` are texts by
    their path in `out`, such as the rows of the recipe's dataset; they are written before anything reads them.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(str(recipe), overrides)
    elif overrides:
        raise RecipeError(
            f"overrides ({', '.join(overrides)}) change a recipe that is read from a file, and a Recipe was given; "
            "use dataclasses.replace, or give the name of the file"
        )
    out = Path(out)
    if not is_main_process():
        wait_for_files([out / name for name in files or ()])
        train_in_folder(recipe, RunFolder.read_only(out))
        return Run(out)
    for warning in startup_warnings(recipe):
        warn(warning, stacklevel=2)
    folder = (RunFolder.reopen if resume else RunFolder.create)(out, dump_recipe(recipe))
    for name, content in (files or {}).items():
        make_folder((out / name).parent)
        replace_file(out / name, partial(Path.write_text, data=content, encoding="utf-8"))
    earlier = folder.read_metrics() if resume else ()
    live = LiveRun(stderr_console(), recipe.training.steps, earlier) if show_progress else None

    def both(event: str, data: Mapping[str, Any]) -> object:
        if live:
            live(event, data)
        return watch(event, data)

    with live or nullcontext():
        train_in_folder(recipe, folder, both)
    return Run(out)
