"""`stipule quickstart`: trains a small masked diffusion model on 4x4 Sudoku by GRPO with STP."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stipule.atomic_io import replace_file
from stipule.config.recipe import dump_recipe, load_recipe
from stipule.evaluation.evaluate import Evaluation, evaluate
from stipule.models.loading import best_device, load_policy
from stipule.object_import import kind_of
from stipule.report.live import LiveRun
from stipule.report.progress import bar
from stipule.rollouts.pruning import ConfidenceCutoff, FixedCutoff, TemporalPruning
from stipule.tasks.problem import Problem
from stipule.training.checkpoint import TrainState, newest_checkpoint
from stipule.training.cost import step_cost
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe


def quickstart(overrides: Sequence[str], out: Path, resume: bool, console: Console) -> dict[str, Any]:
    """Evaluates the bundled model before and after training; prints both and writes `result.json` to the run folder."""
    started = time.perf_counter()
    recipe = load_recipe("quickstart.yaml", overrides)
    folder = (RunFolder.reopen if resume else RunFolder.create)(out, dump_recipe(recipe))
    spatial, temporal = recipe.pruning.spatial, recipe.pruning.temporal
    console.print(
        Panel(
            f"Trains a masked diffusion language model ({recipe.model.path}) to solve 4x4 Sudoku.\n"
            f"GRPO with ELBO likelihoods and Spatio-Temporal Pruning (gamma {spatial.ratio:g}, cutoff "
            f"{_cutoff_label(temporal)}"
            f"{', parallel unmasking' if recipe.sampler.confidence_threshold is not None else ''}), "
            f"{recipe.training.steps} steps on your CPU or GPU.\n"
            f"All files are written to {out}",
            title="stipule quickstart",
            border_style="green",
        )
    )
    problems = recipe.task.problems("test")
    policy = load_policy(recipe.model, device=best_device())
    with bar(console, "before") as progress:
        before = evaluate(policy, recipe.task, problems, recipe.sampler, progress=progress)
    console.print(f"before  {_accuracy(before)}")
    del policy

    with LiveRun(console, recipe.training.steps, folder.read_metrics()) as watch:
        state = train(recipe, folder, watch)

    checkpoint = newest_checkpoint(folder.checkpoints)
    assert checkpoint is not None
    trained = replace(recipe.model, path=str(checkpoint / "model"), lora=None)
    policy = load_policy(trained, device=best_device())
    with bar(console, "after") as progress:
        after = evaluate(policy, recipe.task, problems, recipe.sampler, progress=progress)
    result = {
        "before": before.summary(),
        "after": after.summary(),
        "seconds": round(time.perf_counter() - started, 2),
        "training_seconds": round(state.seconds, 2),
        "model_calls": state.model_calls,
        "pregeneration_calls": state.pregeneration_calls,
        "steps": state.step,
        "seed": recipe.training.seed,
    }
    replace_file(out / "result.json", lambda p: p.write_text(json.dumps(result, indent=2) + "\n"))
    _print_summary(console, recipe, folder, before, after, state, problems)
    return result


def _accuracy(evaluation: Evaluation) -> str:
    low, high = evaluation.interval
    return (
        f"{evaluation.solved / evaluation.total:.1%} of {evaluation.total} test puzzles solved "
        f"(95 % interval {low:.1%} to {high:.1%})"
    )


def _print_summary(
    console: Console,
    recipe: Recipe,
    folder: RunFolder,
    before: Evaluation,
    after: Evaluation,
    state: TrainState,
    problems: Sequence[Problem],
) -> None:
    console.print(f"after   {_accuracy(after)}\n")
    console.print(_examples(before, after, problems))
    pruned_calls = sum(line["nfe/rollout"] for line in folder.read_metrics())
    rows = recipe.training.prompts_per_step * recipe.training.num_generations * state.step
    unpruned_calls = rows * recipe.sampler.steps
    table = Table(title="Forward passes of all rollouts", title_justify="left")
    for column in ("", "forward passes", "relative"):
        table.add_column(column, justify="left" if not column else "right")
    calls = {"without pruning": unpruned_calls}
    if recipe.pruning.spatial.ratio > 0:
        calls["STP with the paper's cutoff (planned)"] = round(rows * _published_nfe(recipe))
    calls["this run"] = pruned_calls
    for name, count in calls.items():
        table.add_row(name, f"{count:,}", f"{count / unpruned_calls:.1%}")
    if state.pregeneration_calls:
        total_calls = pruned_calls + state.pregeneration_calls
        table.add_row("  + generating the anchors, once", f"{total_calls:,}", f"{total_calls / unpruned_calls:.1%}")
    console.print(table)
    console.print(
        f"\n{state.step} RL steps in {state.seconds:.0f} s, {state.model_calls:,} model calls in all. Next:\n"
        f"  stipule eval {folder.path} --limit 100                 the trained model on 100 puzzles\n"
        f"  stipule generate {folder.path} {problems[0].prompt} --show-steps    each step of its denoising\n"
        f"  stipule report {folder.path}    a page with curves, costs, responses and a denoising viewer\n"
        "  stipule quickstart pruning.spatial.ratio=0 pruning.temporal.cutoff=0 sampler.confidence_threshold=null    "
        "without pruning\n"
        "  stipule train --help                                    how to train by your own recipe"
    )


def _cutoff_label(temporal: TemporalPruning) -> str:
    if isinstance(temporal, FixedCutoff | ConfidenceCutoff):
        return f"{temporal.cutoff:g}{' where confident' if isinstance(temporal, ConfidenceCutoff) else ''}"
    return f"by {kind_of(temporal)}"


def _published_nfe(recipe: Recipe) -> float:
    """Forward passes of a rollout by eq. 10, with t_cutoff = gamma as in the paper."""
    published = FixedCutoff(cutoff=recipe.pruning.spatial.ratio)
    return step_cost(replace(recipe, pruning=replace(recipe.pruning, temporal=published))).nfe_per_rollout


def _examples(before: Evaluation, after: Evaluation, problems: Sequence[Problem], count: int = 4) -> Columns:
    """Puzzles that only the trained model solves, with both responses."""
    fixed_by_training = [i for i in range(len(problems)) if after.correct[i] and not before.correct[i]]
    panels = []
    for index in fixed_by_training[:count]:
        clues = problems[index].prompt
        grid = Table.grid(padding=(0, 3))
        grid.add_row("[dim]puzzle", "[dim]before", "[dim]after")
        grid.add_row(_grid(clues, clues), _grid(before.texts[index], clues), _grid(after.texts[index], clues))
        panels.append(Panel(grid, border_style="dim", expand=False))
    return Columns(panels)


def _grid(cells: str, clues: str) -> Text:
    """A 4x4 grid. Generated cells are bold, cells that break a row, column or box are red, blanks are dots."""
    cells = (cells + "?" * 16)[:16]
    text = Text()
    for i, cell in enumerate(cells):
        peers = [j for j in range(16) if j != i and (j // 4 == i // 4 or j % 4 == i % 4 or _box(j) == _box(i))]
        clash = cell != "0" and any(cells[j] == cell for j in peers)
        style = "bold red" if clash else "dim" if clues[i] != "0" else "bold green"
        text.append(("·" if cell == "0" else cell) + (" " if i % 4 < 3 else "\n" if i < 15 else ""), style)
    return text


def _box(cell: int) -> tuple[int, int]:
    return cell // 8, cell % 4 // 2
