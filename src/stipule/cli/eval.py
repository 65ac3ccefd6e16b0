"""`stipule eval`: the accuracy of a model on evaluation problems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stipule.cli.app import Model, Overrides, app, console, interruptible, unused_path


@app.command(
    "eval",
    epilog="Examples:  stipule eval tiny/sudoku --limit 100  ·  stipule eval runs/quickstart --out runs/after  ·  "
    "stipule eval GSAI-ML/LLaDA-8B-Instruct --protocol d1-256 --task gsm8k --limit 16",
)
def evaluate_model(
    model: Model,
    overrides: Overrides = None,
    task: Annotated[
        str | None, typer.Option(help="sudoku, countdown, ...; not needed for a run folder or a bundled model.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Use the problems and the sampler of this recipe.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="d1-128, d1-256, d1-512, spg-256, strict-256, or a YAML file.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first n problems.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Responses generated at once; changes no response.")] = 64,
    out: Annotated[
        Path | None, typer.Option("--out", help="The evaluation folder; run again, the same command continues.")
    ] = None,
) -> None:
    """Measure accuracy on evaluation problems, with a 95 % interval; greedy decoding, no pruning."""
    from stipule.config.protocol import load_protocol
    from stipule.config.recipe import recipe_for_model
    from stipule.evaluation.evaluation_folder import EvaluationFolder, split_hash
    from stipule.models.loading import best_device, load_policy
    from stipule.object_import import settings_of
    from stipule.report.progress import bar, parts
    from stipule.training.run_folder import environment

    rules = load_protocol(protocol) if protocol else None
    resolved = recipe_for_model(model, task, overrides or [], recipe, rules.recipe_sections(task) if rules else None)
    problems = resolved.task.problems(split)[:limit]
    sampler = resolved.sampler
    request = {
        "model": model,
        "task": resolved.task.name,
        "split": split,
        "problems": len(problems),
        "split_hash": split_hash(problems),
        "grading": getattr(resolved.task, "grading", None),
        "protocol": rules.identity if rules else None,
        "settings": settings_of(resolved.task),
        "sampler": {
            "gen_length": sampler.gen_length,
            "steps": sampler.steps,
            "block_length": sampler.block_length,
            "temperature": 0,
        },
    }
    path = out or unused_path(Path("runs") / f"eval-{Path(model).name}-{resolved.task.name}")
    folder = EvaluationFolder(path, request)
    cut = rules is None or rules.stops_at_eos
    with interruptible("the responses so far are kept", f"the same command with --out {path} continues"):
        with parts(console, "loading the model"):
            policy = load_policy(resolved.model, device=best_device())
        with bar(console, "evaluating") as progress:
            result = folder.run(policy, resolved.task, problems, sampler, rows, progress, environment(), cut)
    low, high = result["interval"]
    console.print(
        f"{model} on {resolved.task.name} ({split}): {result['solved']} of {result['total']} solved = "
        f"{result['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}); mean reward {result['reward']:.3f}; "
        f"{result['seconds']:.1f} s, {result['model_calls']:,} model calls; {path}"
    )
