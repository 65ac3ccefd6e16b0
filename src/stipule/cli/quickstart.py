"""`stipule quickstart`: trains a small model while the user watches."""

from __future__ import annotations

from pathlib import Path

from stipule.cli.app import (
    Out,
    Overrides,
    Resume,
    Seed,
    app,
    console,
    interruptible,
    resume_command,
    unused_path,
    with_seed,
)


@app.command(epilog="Examples:  stipule quickstart  ·  stipule quickstart --seed 1 --out runs/second training.steps=30")
def quickstart(overrides: Overrides = None, out: Out = None, seed: Seed = None, resume: Resume = False) -> None:
    """Watch a small model learn 4x4 Sudoku by GRPO with STP, in a few minutes on a laptop."""
    from stipule.commands.quickstart import quickstart as run

    path = out or (Path("runs/quickstart") if resume else unused_path(Path("runs/quickstart")))
    command = resume_command(["quickstart"], overrides, seed, path)
    with interruptible("the last checkpoint is complete", f"continue with:\n  {command}"):
        run(with_seed(overrides, seed), path, resume, console)
