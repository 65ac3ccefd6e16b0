"""`stipule doctor`: checks a model, and with --full a machine, before hours of training are spent on it."""

from __future__ import annotations

from typing import Annotated

import typer

from stipule.cli.app import Model, Overrides, app, console


@app.command(
    epilog="Examples:  stipule doctor tiny/sudoku  ·  stipule doctor GSAI-ML/LLaDA-8B-Instruct model.dtype=bfloat16  "
    "·  stipule doctor Qwen/Qwen3-8B --recipe mine.yaml model.family=a2d model.mask_id=151662  "
    "·  stipule doctor tiny/sudoku sampler.confidence_threshold=0.95 sampler.cache.kind=dual  "
    "·  stipule doctor --device cuda --full"
)
def doctor(
    model: Model = "tiny/sudoku",
    overrides: Overrides = None,
    recipe: Annotated[
        str | None, typer.Option(help="Use the model settings, the sampler and the prompts of this recipe.")
    ] = None,
    problems: Annotated[
        int, typer.Option(min=1, help="Evaluation problems on which approximate and exact rollouts are compared.")
    ] = 64,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: a GPU if there is one.")] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Also check the machine with a tiny model: products, rollouts, likelihoods, RL steps."
        ),
    ] = False,
) -> None:
    """Check attention, padding, token ids, sampling and adapters of a model; each failure comes with its remedy.

    If sampler.confidence_threshold or sampler.cache is set, approximate rollouts are also compared with exact ones:
    tokens, accuracy, diversity and model calls. --full also checks the machine: every kind of rollout, likelihoods and
    RL steps on the device, compared with the CPU, and the versions that a report should name (docs/gpu.md).
    """
    from stipule.commands.machine_checks import check_machine, environment
    from stipule.config.recipe import load_recipe, recipe_for_model
    from stipule.evaluation.doctor import check_model
    from stipule.models.loading import best_device
    from stipule.report.doctor_table import doctor_table
    from stipule.report.progress import parts

    device = device or best_device()
    environment_rows = environment(device)
    resolved = (
        load_recipe(recipe, [*(overrides or []), f"model.path={model}"])
        if recipe
        else recipe_for_model(model, overrides=overrides or [], needs_task=False)
    )
    with parts(console, "loading and checking"):
        checks = check_model(resolved.model, resolved.task, resolved.sampler, problems, device)
    console.print(doctor_table(f"Checks of {model} as a masked diffusion language model", checks))
    if full:
        with parts(console, "checking the machine"):
            machine = list(check_machine(device))
        console.print(doctor_table("Checks of the machine with the model tiny/sudoku", machine))
        for name, value in environment_rows:
            console.print(f"{name:>14}  {value}", markup=False, highlight=False)
        checks = [*checks, *machine]
        failed = [check.name for check in checks if check.ok is False]
        console.print(
            f"{len(checks) - len(failed)} of {len(checks)} passed or do not apply; failed: {failed or 'none'}"
        )
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)
