"""Commands that make something: runs, bases, anchors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stipule.cli.app import Out, Overrides, RecipePath, Resume, Seed, app, console, free_place

anchors_app = typer.Typer(help="The static dataset of spatial pruning.", no_args_is_help=True)
app.add_typer(anchors_app, name="anchors")


@app.command(epilog="Examples:  stipule quickstart  ·  stipule quickstart --seed 1 --out runs/second training.steps=30")
def quickstart(overrides: Overrides = None, out: Out = None, seed: Seed = None, resume: Resume = False) -> None:
    """Watch a small model learn 4x4 Sudoku by GRPO with STP, in a few minutes on a laptop."""
    from stipule.commands.quickstart import quickstart as run

    place = out or (Path("runs/quickstart") if resume else free_place(Path("runs/quickstart")))
    _interruptible(
        lambda: run(_with_seed(overrides, seed), place, resume, console),
        ["stipule", "quickstart", *(overrides or []), *(["--seed", str(seed)] if seed is not None else [])],
        place,
    )


@app.command(
    epilog="Examples:  stipule train recipes/quickstart.yaml --out runs/a  ·  "
    "stipule train quickstart pruning.temporal.cutoff=0  ·  stipule train quickstart --out runs/a --resume  ·  "
    "torchrun --nproc_per_node 8 -m stipule train my.yaml"
)
def train(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, seed: Seed = None, resume: Resume = False
) -> None:
    """Train by a recipe; Ctrl-C saves and says how to go on."""
    from stipule.config.recipe import dump_recipe, load_recipe
    from stipule.report.live import LiveRun
    from stipule.training.distributed import is_main_process
    from stipule.training.loop import train as run
    from stipule.training.run_folder import RunFolder

    place = out or Path("runs") / Path(recipe).stem

    def go() -> None:
        resolved = load_recipe(recipe, _with_seed(overrides, seed))
        if not is_main_process():
            run(resolved, RunFolder.read_only(place))
            return
        folder = (RunFolder.reopen if resume else RunFolder.create)(place, dump_recipe(resolved))
        with LiveRun(console, resolved.training.steps, folder.read_metrics() if resume else ()) as watch:
            done = run(resolved, folder, watch)
        console.print(
            f"{done.step} steps, {done.seconds:.0f} s, {done.model_calls:,} model calls"
            + (f" + {done.pregeneration_calls:,} for the anchors" if done.pregeneration_calls else "")
            + f"; try: stipule eval {place}, stipule report {place}"
        )

    words = ["stipule", "train", recipe, *(overrides or []), *(["--seed", str(seed)] if seed is not None else [])]
    _interruptible(go, words, place)


@app.command(epilog="Examples:  stipule check quickstart  ·  stipule check my.yaml pruning.spatial.ratio=0.1")
def check(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Validate a recipe, print it resolved, and what a step costs; loads no model."""
    from stipule.config.recipe import dump_recipe, load_recipe
    from stipule.report.cost_table import cost_table

    resolved = load_recipe(recipe, overrides or [])
    console.print(dump_recipe(resolved), highlight=False, markup=False)
    console.print(cost_table(resolved))


@app.command(epilog="Example:  stipule pretrain recipes/tiny/sudoku_base.yaml --out runs/base pretraining.steps=200")
def pretrain(recipe: RecipePath, overrides: Overrides = None, out: Out = None) -> None:
    """Pre-train a tiny base from scratch (eq. 3 as a loss) and say what it solves."""
    from stipule.atomic_io import require_unused
    from stipule.config.recipe import load_recipe, recipe_for_model
    from stipule.evaluation.evaluate import evaluate
    from stipule.report.live import bar
    from stipule.training.pretrain import PretrainRecipe
    from stipule.training.pretrain import pretrain as run

    resolved = load_recipe(recipe, overrides or [], PretrainRecipe)
    place = out or Path("runs") / Path(recipe).stem
    require_unused(place)
    with bar(console, "pre-training") as progress:
        policy = run(resolved, place, lambda step, loss: progress(step, resolved.pretraining.steps))
    after = recipe_for_model(str(place))
    with bar(console, "evaluating") as progress:
        found = evaluate(policy, after.task, after.task.problems("test"), after.sampler, progress=progress)
    low, high = found.interval
    console.print(f"{place}: {found.solved} of {found.total} held-out problems solved ({low:.1%} to {high:.1%})")


@anchors_app.command(
    "build",
    epilog="Example:  stipule anchors build quickstart --out anchors.safetensors, then pruning.spatial.path=...",
)
def anchors_build(recipe: RecipePath, overrides: Overrides = None, out: Out = None) -> None:
    """Make the recipe's static dataset; run again, it goes on where it broke off."""
    from stipule.config.recipe import load_recipe
    from stipule.models.loading import load_policy
    from stipule.report.live import bar
    from stipule.training.anchor_source import build_store, check_source

    resolved = load_recipe(recipe, overrides or [])
    check_source(resolved.pruning.spatial)
    place = out or Path("runs") / f"{Path(recipe).stem}-anchors.safetensors"
    policy = load_policy(resolved.model, seed=resolved.training.seed)
    with bar(console, "making anchors") as progress:
        store = build_store(resolved, policy, resolved.task.problems("train"), place, progress)
    table = store.table
    console.print(
        f"{place}: {len(store):,} responses, {table['correct'].float().mean():.0%} of them right, "
        f"{table['eligible'].float().mean():.0%} of their tokens may become anchors, "
        f"{store.model_calls:,} model calls; use it with pruning.spatial.source=pregenerated "
        f"pruning.spatial.path={place}"
    )


@anchors_app.command(
    "audit",
    epilog="Example:  stipule anchors audit quickstart --problems 64  ·  ... pruning.spatial.source=ground_truth",
)
def anchors_audit(
    recipe: RecipePath,
    overrides: Overrides = None,
    problems: Annotated[int, typer.Option(min=2, help="Training problems sampled.")] = 64,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there.")] = None,
) -> None:
    """What the recipe's anchors give away: reward read off them, answers held, solve rates with and without."""
    from stipule.atomic_io import replace_file
    from stipule.config.recipe import load_recipe
    from stipule.evaluation.leakage import check_leakage
    from stipule.models.loading import load_policy
    from stipule.report.leakage_table import leakage_table
    from stipule.report.live import bar
    from stipule.training.anchor_source import check_source, temporary_store

    resolved = load_recipe(recipe, overrides or [])
    check_source(resolved.pruning.spatial)
    policy = load_policy(resolved.model, seed=resolved.training.seed)
    asked = resolved.task.problems("train")[:problems]
    with bar(console, "making anchors") as progress:
        store = temporary_store(resolved, policy, asked, progress)
    settings = resolved.training
    with bar(console, "rolling out") as progress:
        found = check_leakage(
            policy,
            resolved.task,
            asked,
            resolved.sampler,
            resolved.pruning,
            store,
            settings.num_generations,
            settings.seed,
            progress,
        )
    console.print(leakage_table(found))
    if json_file:
        replace_file(json_file, lambda p: p.write_text(json.dumps(found, indent=2) + "\n"))


def _with_seed(overrides: list[str] | None, seed: int | None) -> list[str]:
    return [*(overrides or []), *([] if seed is None else [f"training.seed={seed}"])]


def _interruptible(work: Any, words: list[str], place: Path) -> None:
    try:
        work()
    except KeyboardInterrupt as stop:
        from stipule.training.distributed import is_main_process
        from stipule.training.interrupt import Interrupted

        if not is_main_process():
            raise typer.Exit(130) from stop
        saved = "saved" if isinstance(stop, Interrupted) else "stopped; the last checkpoint is whole"
        console.print(f"{saved}; go on with:\n  {' '.join(words)} --out {place} --resume", markup=False, soft_wrap=True)
        raise typer.Exit(130) from stop
