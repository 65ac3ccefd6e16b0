"""`stipule anchors build` and `stipule anchors audit`: the anchors of spatial pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stipule.cli.app import Out, Overrides, RecipePath, app, console, interruptible

anchors_app = typer.Typer(help="Build and check the anchors of spatial pruning.", no_args_is_help=True)
app.add_typer(anchors_app, name="anchors")


@anchors_app.command(
    "build",
    epilog="Example:  stipule anchors build quickstart --out anchors.safetensors, then "
    "stipule train quickstart pruning.spatial.path=anchors.safetensors",
)
def anchors_build(recipe: RecipePath, overrides: Overrides = None, out: Out = None) -> None:
    """Generate the responses that a recipe takes its anchors from; run again, the same command continues."""
    from stipule.config.recipe import load_recipe
    from stipule.file_lock import sole_writer
    from stipule.models.loading import best_device, load_policy
    from stipule.report.progress import bar, parts
    from stipule.training.anchor_source import build_store, check_source

    resolved = load_recipe(recipe, overrides or [])
    check_source(resolved.pruning.spatial)
    path = out or Path("runs") / f"{Path(recipe).stem}-anchors.safetensors"
    with interruptible("the store is saved every half minute", "the same command continues"), sole_writer(path):
        with parts(console, "loading the model"):
            policy = load_policy(resolved.model, device=best_device(), seed=resolved.training.seed)
        with bar(console, "generating anchors") as progress:
            store = build_store(resolved, policy, resolved.task.problems("train"), path, progress)
    table = store.table
    console.print(
        f"{path}: {len(store):,} responses, {table['correct'].float().mean():.0%} of them correct, "
        f"{table['eligible'].float().mean():.0%} of their tokens may become anchors, "
        f"{store.model_calls:,} model calls; use it with pruning.spatial.source=pregenerated "
        f"pruning.spatial.path={path}"
    )


@anchors_app.command(
    "audit",
    epilog="Examples:  stipule anchors audit quickstart --problems 64  ·  "
    "stipule anchors audit quickstart pruning.spatial.source=ground_truth",
)
def anchors_audit(
    recipe: RecipePath,
    overrides: Overrides = None,
    problems: Annotated[int, typer.Option(min=2, help="Number of training problems.")] = 64,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """Check whether a recipe's anchors leak the answer: reward of the anchors alone, accuracy with and without them."""
    from stipule.atomic_io import replace_file
    from stipule.config.recipe import load_recipe
    from stipule.evaluation.leakage import check_leakage
    from stipule.models.loading import best_device, load_policy
    from stipule.report.leakage_table import leakage_table
    from stipule.report.progress import bar
    from stipule.training.anchor_source import check_source, temporary_store

    resolved = load_recipe(recipe, overrides or [])
    check_source(resolved.pruning.spatial)
    policy = load_policy(resolved.model, device=best_device(), seed=resolved.training.seed)
    train_problems = resolved.task.problems("train")[:problems]
    with bar(console, "generating anchors") as progress:
        store = temporary_store(resolved, policy, train_problems, progress)
    settings = resolved.training
    with bar(console, "generating rollouts") as progress:
        result = check_leakage(
            policy,
            resolved.task,
            train_problems,
            resolved.sampler,
            resolved.pruning,
            store,
            settings.num_generations,
            settings.seed,
            progress,
        )
    console.print(leakage_table(result))
    if json_file:
        replace_file(json_file, lambda p: p.write_text(json.dumps(result, indent=2) + "\n"))
