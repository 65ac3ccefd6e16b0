"""`stipule generate`: one response, and the steps of its denoising."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from stipule.cli.app import Model, Overrides, app, console
from stipule.errors import RecipeError, StipuleError


@app.command(
    epilog="Examples:  stipule generate tiny/sudoku 0243000001202030 --show-steps  ·  "
    'stipule generate GSAI-ML/LLaDA-8B-Instruct "What is 12 times 12?" sampler.gen_length=64 sampler.steps=32  ·  '
    "stipule generate tiny/sudoku 0243000001202030 --cutoff 0.125 --anchors 1243342141234312 --show-steps"
)
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The user's message; with --raw, the text before the response.")],
    overrides: Overrides = None,
    show_steps: Annotated[
        bool, typer.Option("--show-steps", help="Show the response after each model call; in a terminal, animated.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the noise; it matters if the temperature is above 0.")] = 0,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw", help="With or without the chat template. Default: with it, if the tokenizer has one."
        ),
    ] = None,
    anchors: Annotated[
        str | None,
        typer.Option(help="Fix a fraction of the response (pruning.spatial.ratio, or 0.05) to tokens of this text."),
    ] = None,
    cutoff: Annotated[
        float, typer.Option(help="Unmask this last fraction in one call (temporal pruning; 0.05 in the paper).")
    ] = 0.0,
) -> None:
    """Generate one response to a prompt: greedy unless sampler.temperature is set, no pruning unless asked for."""
    from stipule.config.recipe import recipe_for_model
    from stipule.models.loading import best_device, load_policy
    from stipule.report.denoising_view import animate, denoising_steps, legend
    from stipule.rng import make_generator
    from stipule.rollouts.anchors_from_text import anchors_from_text
    from stipule.rollouts.pruning import FixedCutoff

    resolved = recipe_for_model(model, None, ["sampler.temperature=0", *(overrides or [])], needs_task=False)
    temporal = FixedCutoff(cutoff=cutoff)
    policy = load_policy(replace(resolved.model, gradient_checkpointing=False), device=best_device())
    if chat and policy.tokenizer.chat_template is None:
        raise RecipeError(
            f"--chat is set, but the tokenizer of {model} has no chat template; leave it out, or use --raw"
        )
    try:
        prompts = policy.encode_raw([prompt]) if chat is False else policy.encode([prompt])
        anchor_ids = policy.tokenizer(anchors, add_special_tokens=False)["input_ids"] if anchors else []
    except StipuleError:
        raise
    except Exception as cause:  # the tiny tokenizers raise a plain Exception for an unknown word
        raise StipuleError(f"the prompt {prompt!r} cannot be encoded by {model}: {cause}") from cause
    sampler = resolved.sampler
    placed = None
    if anchors:
        ratio = resolved.pruning.spatial.ratio or 0.05
        generator = make_generator(seed, 0, "anchors")
        placed = anchors_from_text(anchor_ids, sampler.gen_length, ratio, policy.mask_id, generator)
    rollouts = sampler(policy, prompts, sampler.sample_noise(1, make_generator(seed, 0, "generate")), placed, temporal)
    if show_steps:
        token_texts = [
            policy.token_text(token) or ("" if token == policy.eos_id else "?")
            for token in rollouts.completion_ids[0].tolist()
        ]
        frames = denoising_steps(
            token_texts, rollouts.unmask_step[0].tolist(), rollouts.confidence[0].tolist(), cut=temporal.cutoff > 0
        )
        animate(console, list(frames))
        if console.is_terminal:
            console.print(legend(temporal.cutoff > 0, placed is not None))
    else:
        console.print(policy.decode(rollouts.completion_ids)[0], markup=False, highlight=False)
