"""Commands that look at a model: what it solves, how it denoises, how far its estimates scatter."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stipule.cli.app import Model, Out, Overrides, RecipePath, app, console, free_place


@app.command(
    "eval",
    epilog="Examples:  stipule eval tiny/sudoku --limit 100  ·  stipule eval runs/quickstart --out runs/after  ·  "
    "stipule eval GSAI-ML/LLaDA-8B-Instruct --protocol d1-256 --task gsm8k --limit 16",
)
def evaluate_model(
    model: Model,
    overrides: Overrides = None,
    task: Annotated[
        str | None, typer.Option(help="sudoku, countdown, ...; a run or a tiny base knows its own.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Ask the problems of this recipe, with its sampler.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="d1-128, d1-256, d1-512, spg-256, strict-256, or a YAML file.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first n problems.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Responses denoised at once; changes no response.")] = 64,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder; the same command goes on where it broke off.")
    ] = None,
) -> None:
    """Greedy solve rate on held-out problems, with a 95 % interval; nothing is pruned."""
    from stipule.config.protocol import load_protocol
    from stipule.config.recipe import recipe_for_model
    from stipule.evaluation.evaluation_folder import EvaluationFolder, split_hash
    from stipule.models.loading import best_device, load_policy
    from stipule.report.live import bar
    from stipule.training.run_folder import environment

    chosen = load_protocol(protocol) if protocol else None
    resolved = recipe_for_model(model, task, overrides or [], recipe, chosen.recipe_sections(task) if chosen else None)
    problems = resolved.task.problems(split)[:limit]
    sampler = resolved.sampler
    asked = {
        "model": model,
        "task": resolved.task.kind,
        "split": split,
        "problems": len(problems),
        "split_hash": split_hash(problems),
        "grading": getattr(resolved.task, "grading", None),
        "protocol": chosen.identity if chosen else None,
        "settings": asdict(resolved.task),
        "sampler": {
            "gen_length": sampler.gen_length,
            "steps": sampler.steps,
            "block_length": sampler.block_length,
            "temperature": 0,
        },
    }
    place = out or free_place(Path("runs") / f"eval-{Path(model).name}-{resolved.task.kind}")
    folder = EvaluationFolder(place, asked)
    policy = load_policy(resolved.model, device=best_device())
    cut = chosen is None or chosen.stops_at_eos
    with bar(console, "evaluating") as progress:
        found = folder.run(policy, resolved.task, problems, sampler, rows, progress, environment(), cut)
    low, high = found["interval"]
    console.print(
        f"{model} on {resolved.task.kind} ({split}): {found['solved']} of {found['total']} solved = "
        f"{found['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}); mean reward {found['reward']:.3f}; "
        f"{found['seconds']:.1f} s, {found['model_calls']:,} model calls; {place}"
    )


@app.command(
    epilog="Examples:  stipule compare runs/before runs/after  ·  "
    "stipule compare runs/a-0,runs/a-1,runs/a-2 runs/b-0,runs/b-1,runs/b-2"
)
def compare(
    evaluations: Annotated[
        list[str], typer.Argument(metavar="A B [...]", help="Evaluation folders; seeds of one method joined by commas.")
    ],
    across: Annotated[
        bool, typer.Option("--across-settings", help="Compare although the evaluations asked different things.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """Paired differences on the same problems: each against the first, with intervals and exact tests."""
    from stipule.atomic_io import replace_file
    from stipule.evaluation.compare import compare_all
    from stipule.report.comparison_table import comparison_table

    rows = compare_all([[Path(p) for p in words.split(",")] for words in evaluations], across)
    console.print(comparison_table(rows))
    if json_file:
        replace_file(json_file, lambda p: p.write_text(json.dumps(rows, indent=2) + "\n"))


@app.command(
    epilog="Examples:  stipule variance quickstart  ·  stipule variance quickstart pruning.spatial.keep=random "
    "--responses 64 --draws 256 --steps 0"
)
def variance(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    responses: Annotated[int, typer.Option(help="Responses measured.")] = 32,
    draws: Annotated[int, typer.Option(help="Independent estimates of each response.")] = 128,
    steps: Annotated[int, typer.Option(min=0, help="RL steps trained with and without pruning for figure 3a.")] = 12,
) -> None:
    """Measure what ELBO estimates vary by: pruning, masks, forms, updates; tables, json and a figure."""
    from stipule.atomic_io import replace_file, require_unused
    from stipule.commands.variance_study import variance_study
    from stipule.config.recipe import load_recipe
    from stipule.report.variance_figure import variance_figure
    from stipule.report.variance_table import variance_tables

    resolved = load_recipe(recipe, overrides or [])
    place = out or free_place(Path("runs") / f"{Path(recipe).stem}-variance")
    require_unused(place)
    with console.status("measuring") as status:
        found = variance_study(resolved, responses, draws, steps, place, lambda words: status.update(words))
    console.print(variance_tables(found))
    replace_file(place / "variance.json", lambda p: p.write_text(json.dumps(found, indent=1) + "\n"))
    variance_figure(found, place / "variance.png")
    console.print(f"{place}/variance.json and {place}/variance.png")
