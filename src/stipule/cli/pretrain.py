"""`stipule pretrain`: a tiny model from scratch."""

from __future__ import annotations

from pathlib import Path

from stipule.cli.app import Out, Overrides, RecipePath, app, console, interruptible


@app.command(epilog="Example:  stipule pretrain recipes/tiny/sudoku_base.yaml --out runs/base pretraining.steps=200")
def pretrain(recipe: RecipePath, overrides: Overrides = None, out: Out = None) -> None:
    """Pre-train a tiny model from scratch, with the ELBO of eq. 3 as the loss, and measure its accuracy."""
    from stipule.atomic_io import require_unused
    from stipule.config.recipe import load_recipe, recipe_for_model
    from stipule.evaluation.evaluate import evaluate
    from stipule.file_lock import sole_writer
    from stipule.report.progress import bar
    from stipule.training.pretrain import PretrainRecipe
    from stipule.training.pretrain import pretrain as run

    resolved = load_recipe(recipe, overrides or [], PretrainRecipe)
    path = out or Path("runs") / Path(recipe).stem
    require_unused(path)
    with (
        interruptible("pre-training keeps nothing before its end", "start it again"),
        sole_writer(path),
        bar(console, "pre-training") as progress,
    ):
        progress(0, resolved.pretraining.steps)
        policy = run(resolved, path, lambda step, loss: progress(step, resolved.pretraining.steps))
    trained = recipe_for_model(str(path))
    with bar(console, "evaluating") as progress:
        result = evaluate(policy, trained.task, trained.task.problems("test"), trained.sampler, progress=progress)
    low, high = result.interval
    console.print(f"{path}: {result.solved} of {result.total} test problems solved ({low:.1%} to {high:.1%})")
