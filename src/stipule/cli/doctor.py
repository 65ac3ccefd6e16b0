"""`stipule doctor`: checks a model before hours of training are spent on it."""

from __future__ import annotations

from typing import Annotated

import typer

from stipule.cli.app import Model, Overrides, app, console


@app.command(
    epilog="Examples:  stipule doctor tiny/sudoku  ·  stipule doctor GSAI-ML/LLaDA-8B-Instruct model.dtype=bfloat16  "
    "·  stipule doctor Qwen/Qwen3-8B --recipe mine.yaml model.family=a2d model.mask_id=151662  "
    "·  stipule doctor tiny/sudoku sampler.confidence_threshold=0.95 sampler.cache.kind=dual"
)
def doctor(
    model: Model,
    overrides: Overrides = None,
    recipe: Annotated[
        str | None, typer.Option(help="Use the model settings, the sampler and the prompts of this recipe.")
    ] = None,
    problems: Annotated[
        int, typer.Option(min=1, help="Evaluation problems on which approximate and exact rollouts are compared.")
    ] = 64,
) -> None:
    """Check attention, padding, token ids, sampling and adapters of a model; each failure comes with its remedy.

    If sampler.confidence_threshold or sampler.cache is set, approximate rollouts are also compared with exact ones:
    tokens, accuracy, diversity and model calls.
    """
    from stipule.config.recipe import load_recipe, recipe_for_model
    from stipule.evaluation.doctor import check_model
    from stipule.report.doctor_table import doctor_table
    from stipule.report.progress import parts

    resolved = (
        load_recipe(recipe, [*(overrides or []), f"model.path={model}"])
        if recipe
        else recipe_for_model(model, overrides=overrides or [], needs_task=False)
    )
    with parts(console, "loading and checking"):
        checks = check_model(resolved.model, resolved.task, resolved.sampler, problems)
    console.print(doctor_table(model, checks))
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)
