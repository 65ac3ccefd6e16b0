"""`stipule quickstart`: a small masked diffusion model learns 4x4 Sudoku by GRPO with STP while you watch."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
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
from stipule.models.loading import load_policy
from stipule.report.live import LiveRun, bar
from stipule.tasks.problem import Problem
from stipule.training.checkpoint import TrainState, newest_checkpoint
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe


def quickstart(overrides: Sequence[str], out: Path, resume: bool, console: Console) -> dict[str, Any]:
    """Evaluates the bundled base, trains it, evaluates again; prints, and writes `result.json` in the run folder."""
    started = time.perf_counter()
    recipe = load_recipe("quickstart.yaml", overrides)
    folder = (RunFolder.reopen if resume else RunFolder.create)(out, dump_recipe(recipe))
    spatial, temporal = recipe.pruning.spatial, recipe.pruning.temporal
    console.print(
        Panel(
            f"A masked diffusion language model ({recipe.model.path}) with a bad habit learns to solve 4x4 Sudoku.\n"
            f"GRPO with ELBO likelihoods and Spatio-Temporal Pruning (gamma {spatial.ratio:g}, cut-off "
            f"{temporal.cutoff:g}), {recipe.training.steps} steps on the CPU or GPU you have.\n"
            f"Everything lands in {out}",
            title="stipule quickstart",
            border_style="green",
        )
    )
    problems = recipe.task.problems("test")
    policy = load_policy(recipe.model)
    with bar(console, "before") as progress:
        before = evaluate(policy, recipe.task, problems, recipe.sampler, progress=progress)
    console.print(f"before  {_rate(before)}")
    del policy

    with LiveRun(console, recipe.training.steps, folder.read_metrics()) as watch:
        done = train(recipe, folder, watch)

    place = newest_checkpoint(folder.checkpoints)
    assert place is not None
    policy = load_policy(type(recipe.model)(**{**vars(recipe.model), "path": str(place / "model"), "lora": None}))
    with bar(console, "after") as progress:
        after = evaluate(policy, recipe.task, problems, recipe.sampler, progress=progress)
    result = {
        "before": before.summary(),
        "after": after.summary(),
        "seconds": round(time.perf_counter() - started, 2),
        "training_seconds": round(done.seconds, 2),
        "model_calls": done.model_calls,
        "pregeneration_calls": done.pregeneration_calls,
        "steps": done.step,
        "seed": recipe.training.seed,
    }
    replace_file(out / "result.json", lambda p: p.write_text(json.dumps(result, indent=2) + "\n"))
    _summary(console, recipe, folder, before, after, done, problems)
    return result


def _rate(found: Evaluation) -> str:
    low, high = found.interval
    return (
        f"{found.solved / found.total:.1%} of {found.total} held-out puzzles solved "
        f"(95 % interval {low:.1%} to {high:.1%})"
    )


def _summary(
    console: Console,
    recipe: Recipe,
    folder: RunFolder,
    before: Evaluation,
    after: Evaluation,
    done: TrainState,
    problems: Sequence[Problem],
) -> None:
    console.print(f"after   {_rate(after)}\n")
    console.print(_examples(before, after, problems))
    spent = sum(line["nfe/rollout"] for line in folder.read_metrics())
    rows = recipe.training.prompts_per_step * recipe.training.num_generations * done.step
    plain = rows * recipe.sampler.steps
    table = Table(title="What pruning saved: model calls of the rollouts (rows x calls)", title_justify="left")
    for column in ("", "model calls", "relative"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("unpruned denoising", f"{plain:,}", "100 %")
    table.add_row("with STP", f"{spent:,}", f"{spent / plain:.1%}")
    if done.pregeneration_calls:
        with_store = spent + done.pregeneration_calls
        table.add_row("  + making the anchors, once", f"{with_store:,}", f"{with_store / plain:.1%}")
    console.print(table)
    console.print(
        f"\n{done.step} RL steps in {done.seconds:.0f} s, {done.model_calls:,} model calls in all. What to try next:\n"
        f"  stipule eval {folder.path} --limit 100                 the trained model on more puzzles\n"
        f"  stipule generate {folder.path} {problems[0].prompt} --show-steps    watch it denoise\n"
        f"  stipule report {folder.path}    one page: curves, costs, responses, a denoising viewer\n"
        "  stipule quickstart pruning.spatial.ratio=0 pruning.temporal.cutoff=0    the same without pruning\n"
        "  stipule train --help                                    your own recipe"
    )


def _examples(before: Evaluation, after: Evaluation, problems: Sequence[Problem], count: int = 4) -> Columns:
    """Puzzles that were got wrong before and right after, beside one another."""
    mended = [i for i in range(len(problems)) if after.correct[i] and not before.correct[i]]
    panels = []
    for index in mended[:count]:
        clues = problems[index].prompt
        grid = Table.grid(padding=(0, 3))
        grid.add_row("[dim]puzzle", "[dim]before", "[dim]after")
        grid.add_row(_grid(clues, clues), _grid(before.texts[index], clues), _grid(after.texts[index], clues))
        panels.append(Panel(grid, border_style="dim", expand=False))
    return Columns(panels)


def _grid(cells: str, clues: str) -> Text:
    """A 4x4 grid; what the model wrote is bold, what breaks a row, column or box is red, a blank is a dot."""
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
