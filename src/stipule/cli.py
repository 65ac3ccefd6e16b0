"""The `stipule` command. Thin: every command is a function somewhere else, imported when it is called."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stipule.errors import DivergenceError, StipuleError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(
    help="Reinforcement learning for masked diffusion language models, with Spatio-Temporal Pruning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
anchors_app = typer.Typer(help="The static dataset of spatial pruning.", no_args_is_help=True)
app.add_typer(anchors_app, name="anchors")
console = Console()

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. training.steps=20.")
]
RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model folder, a run folder (its newest checkpoint), a hub name, or tiny/..."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out, bit for bit.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Short for training.seed=SEED.")]


def _with_seed(overrides: list[str] | None, seed: int | None) -> list[str]:
    return [*(overrides or []), *([] if seed is None else [f"training.seed={seed}"])]


@app.command(epilog="Examples:  stipule quickstart  ·  stipule quickstart --seed 1 --out runs/second training.steps=30")
def quickstart(overrides: Overrides = None, out: Out = None, seed: Seed = None, resume: Resume = False) -> None:
    """Watch a small model learn 4x4 Sudoku by GRPO with STP, in a few minutes on a laptop."""
    from stipule.quickstart import quickstart as run

    place = out or (Path("runs/quickstart") if resume else _free(Path("runs/quickstart")))
    _interruptible(
        lambda: run(_with_seed(overrides, seed), place, resume, console),
        ["stipule", "quickstart", *(overrides or []), *(["--seed", str(seed)] if seed is not None else [])],
        place,
    )


@app.command(
    epilog="Examples:  stipule train recipes/quickstart.yaml --out runs/a  ·  "
    "stipule train quickstart pruning.temporal.cutoff=0  ·  stipule train quickstart --out runs/a --resume"
)
def train(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, seed: Seed = None, resume: Resume = False
) -> None:
    """Train by a recipe; Ctrl-C saves and says how to go on."""
    from stipule.recipe import dump_recipe, load_recipe
    from stipule.report.live import LiveRun
    from stipule.training.folder import RunFolder
    from stipule.training.loop import train as run

    place = out or Path("runs") / Path(recipe).stem

    def go() -> None:
        resolved = load_recipe(recipe, _with_seed(overrides, seed))
        folder = (RunFolder.reopen if resume else RunFolder.create)(place, dump_recipe(resolved))
        with LiveRun(console, resolved.training.steps, folder.read_metrics() if resume else ()) as watch:
            done = run(resolved, folder, watch)
        console.print(
            f"{done.step} steps, {done.seconds:.0f} s, {done.model_calls:,} model calls"
            + (f" + {done.pregeneration_calls:,} for the anchors" if done.pregeneration_calls else "")
            + f"; try: stipule eval {place}"
        )

    words = ["stipule", "train", recipe, *(overrides or []), *(["--seed", str(seed)] if seed is not None else [])]
    _interruptible(go, words, place)


@app.command(epilog="Examples:  stipule check quickstart  ·  stipule check my.yaml pruning.spatial.ratio=0.1")
def check(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Validate a recipe, print it resolved, and what a step costs; loads no model."""
    from stipule.recipe import dump_recipe, load_recipe
    from stipule.report.cost_table import cost_table

    resolved = load_recipe(recipe, overrides or [])
    console.print(dump_recipe(resolved), highlight=False, markup=False)
    console.print(cost_table(resolved))


@app.command(epilog="Example:  stipule pretrain recipes/tiny/sudoku_base.yaml --out runs/base pretraining.steps=200")
def pretrain(recipe: RecipePath, overrides: Overrides = None, out: Out = None) -> None:
    """Pre-train a tiny base from scratch (eq. 3 as a loss) and say what it solves."""
    from stipule.evidence.evaluate import evaluate
    from stipule.files import refuse_occupied
    from stipule.recipe import load_recipe, recipe_for_model
    from stipule.report.live import bar
    from stipule.training.pretrain import PretrainRecipe
    from stipule.training.pretrain import pretrain as run

    resolved = load_recipe(recipe, overrides or [], PretrainRecipe)
    place = out or Path("runs") / Path(recipe).stem
    refuse_occupied(place)
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
    """Pre-generate one response per training problem with the recipe's model."""
    from stipule.files import refuse_occupied
    from stipule.models.loading import load_policy
    from stipule.recipe import load_recipe
    from stipule.report.live import bar
    from stipule.rollouts.pregenerate import pregenerate

    resolved = load_recipe(recipe, overrides or [])
    place = out or Path("runs") / f"{Path(recipe).stem}-anchors.safetensors"
    refuse_occupied(place)
    policy = load_policy(resolved.model, seed=resolved.training.seed)
    settings = resolved.training
    with bar(console, "pre-generating") as progress:
        store = pregenerate(
            policy,
            resolved.task,
            resolved.task.problems("train"),
            resolved.sampler,
            settings.seed,
            settings.rollout_rows,
            progress,
        )
    store.save(place)
    share = store.table["eligible"].float().mean().item()
    console.print(
        f"{place}: {len(store):,} responses, {share:.0%} of their tokens may become anchors, "
        f"{store.model_calls:,} model calls; use it with pruning.spatial.path={place}"
    )


@app.command(
    epilog="Examples:  stipule eval tiny/sudoku --limit 100  ·  stipule eval runs/quickstart --json result.json  ·  "
    "stipule eval GSAI-ML/LLaDA-8B-Instruct --task countdown --limit 16"
)
def eval(
    model: Model,
    overrides: Overrides = None,
    task: Annotated[str | None, typer.Option(help="sudoku or countdown; a run or a tiny base knows its own.")] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first n problems.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Responses denoised at once.")] = 64,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write counts and responses there.")] = None,
) -> None:
    """Greedy solve rate on held-out problems, with a 95 % interval; nothing is pruned."""
    from stipule.evidence.evaluate import evaluate
    from stipule.files import replace_file
    from stipule.models.loading import load_policy
    from stipule.recipe import recipe_for_model
    from stipule.report.live import bar

    resolved = recipe_for_model(model, task, overrides or [])
    problems = resolved.task.problems(split)[:limit]
    policy = load_policy(resolved.model)
    with bar(console, "evaluating") as progress:
        found = evaluate(policy, resolved.task, problems, resolved.sampler, rows, progress)
    low, high = found.interval
    console.print(
        f"{model} on {resolved.task.kind} ({split}): {found.solved} of {found.total} solved = "
        f"{found.solved / found.total:.1%} (95 % interval {low:.1%} to {high:.1%}); mean reward {found.reward:.3f}; "
        f"{found.seconds:.1f} s, {found.model_calls:,} model calls"
    )
    if json_file:
        responses = [
            {"key": p.key, "response": text, "correct": right}
            for p, text, right in zip(problems, found.texts, found.correct, strict=True)
        ]
        record = {"model": model, "task": resolved.task.kind, "split": split, **found.summary(), "responses": responses}
        replace_file(json_file, lambda p: p.write_text(json.dumps(record, indent=2) + "\n"))


@app.command(
    epilog="Examples:  stipule generate tiny/sudoku 0243000001202030 --show-steps  ·  "
    'stipule generate GSAI-ML/LLaDA-8B-Instruct "What is 12 times 12?" sampler.length=64 sampler.steps=32'
)
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The user's turn.")],
    overrides: Overrides = None,
    show_steps: Annotated[
        bool, typer.Option("--show-steps", help="Print the response after every model call.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the noise, where the temperature is above 0.")] = 0,
) -> None:
    """Denoise one response to a prompt, greedily unless sampler.temperature is given."""
    from stipule.models.loading import load_policy
    from stipule.recipe import recipe_for_model
    from stipule.report.steps import denoising_steps
    from stipule.streams import stream

    resolved = recipe_for_model(model, None, ["sampler.temperature=0", *(overrides or [])])
    policy = load_policy(resolved.model)
    try:
        prompts = policy.encode([prompt])
    except Exception as cause:  # the tiny tokenizers raise a plain Exception on a word they do not have
        raise StipuleError(f"the prompt {prompt!r} cannot be encoded by {model}: {cause}") from cause
    noise = resolved.sampler.draw(1, stream(seed, 0, "generate"))
    response = resolved.sampler(policy, prompts, noise)
    if show_steps:
        pieces = [
            policy.piece(token) or ("" if token == policy.eos_id else "?") for token in response.tokens[0].tolist()
        ]
        for line in denoising_steps(pieces, response.revealed[0].tolist(), response.confidence[0].tolist()):
            console.print(line)
    else:
        console.print(policy.decode(response.tokens)[0], markup=False, highlight=False)


def _free(place: Path) -> Path:
    """The place, or the first numbered one beside it that is free: a second quickstart overwrites nothing."""
    number, candidate = 1, place
    while candidate.exists():
        number += 1
        candidate = place.with_name(f"{place.name}-{number}")
    return candidate


def _interruptible(work: Any, words: list[str], place: Path) -> None:
    try:
        work()
    except KeyboardInterrupt as stop:
        from stipule.training.interrupt import Interrupted

        saved = "saved" if isinstance(stop, Interrupted) else "stopped; the last checkpoint is whole"
        console.print(f"{saved}; go on with:\n  {' '.join(words)} --out {place} --resume", markup=False, soft_wrap=True)
        raise typer.Exit(130) from stop


def main() -> None:
    """Runs the command; a user's error is one message and exit code 2, a diverged run exit code 1."""
    try:
        app()
    except DivergenceError as error:
        _complain(error)
        sys.exit(1)
    except StipuleError as error:
        _complain(error)
        sys.exit(2)


def _complain(error: StipuleError) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
