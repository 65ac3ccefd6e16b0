"""`stipule train`: an RL run."""

from __future__ import annotations

from pathlib import Path

from stipule.cli.app import (
    Out,
    Overrides,
    RecipePath,
    Resume,
    Seed,
    app,
    console,
    interruptible,
    print_warnings,
    resume_command,
    with_seed,
)


@app.command(
    epilog="Examples:  stipule train recipes/quickstart.yaml --out runs/a  ·  "
    "stipule train quickstart pruning.temporal.cutoff=0  ·  stipule train quickstart --out runs/a --resume  ·  "
    "torchrun --nproc_per_node 8 -m stipule train my.yaml"
)
def train(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, seed: Seed = None, resume: Resume = False
) -> None:
    """Train a model by a recipe; Ctrl-C or SIGTERM saves a checkpoint and prints the command that continues."""
    from stipule.config.recipe import dump_recipe, load_recipe
    from stipule.report.live import LiveRun
    from stipule.training.distributed import is_main_process
    from stipule.training.loop import train as run
    from stipule.training.run_folder import RunFolder

    path = out or Path("runs") / Path(recipe).stem

    command = resume_command(["train", recipe], overrides, seed, path)
    with interruptible("the last checkpoint is complete", f"continue with:\n  {command}"):
        resolved = load_recipe(recipe, with_seed(overrides, seed))
        if not is_main_process():
            run(resolved, RunFolder.read_only(path))
            return
        print_warnings(resolved)
        folder = (RunFolder.reopen if resume else RunFolder.create)(path, dump_recipe(resolved))
        with LiveRun(console, resolved.training.steps, folder.read_metrics() if resume else ()) as watch:
            state = run(resolved, folder, watch)
    console.print(
        f"{state.step} steps, {state.seconds:.0f} s, {state.model_calls:,} model calls"
        + (f" + {state.pregeneration_calls:,} for the anchors" if state.pregeneration_calls else "")
        + f"; try: stipule eval {path}, stipule report {path}"
    )
