"""THE LOOP: one RL step as a straight line (architecture in README.md, equations in docs/papers.md)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from stipule.errors import DivergenceError, RecipeError
from stipule.evidence.evaluate import evaluate
from stipule.models.loading import load_policy
from stipule.models.policy import MaskedPolicy
from stipule.streams import stream
from stipule.tasks.problem import Problem
from stipule.training.anchoring import Watch, anchor_store, check_source, remember
from stipule.training.checkpoint import (
    Progress,
    load_optimizer,
    newest_checkpoint,
    read_progress,
    save_checkpoint,
)
from stipule.training.clock import Clock
from stipule.training.explore import audit_step, explore
from stipule.training.folder import RunFolder
from stipule.training.interrupt import Interrupted, graceful
from stipule.training.records import describe, records
from stipule.training.settings import Recipe
from stipule.training.update import learn


def train(recipe: Recipe, folder: RunFolder, watch: Watch = lambda event, data: None) -> Progress:
    """Runs a recipe in its folder, from the newest checkpoint there.
    `watch` is told of anchors, steps and saves.

    Continuing is exact: after a kill at any moment the same weights come out, because a checkpoint is whole or absent
    and all randomness is a function of (seed, step, purpose).
    """
    settings = recipe.training
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise RecipeError("training runs in one process for now; start it without torchrun or accelerate launch")
    place = newest_checkpoint(folder.checkpoints)
    progress = read_progress(place) if place else Progress()
    folder.forget_after(progress.step)

    check_source(recipe.pruning.spatial)
    policy = _load(recipe, place, accelerator.device)
    parameters = policy.trainable()
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=recipe.optimizer.learning_rate,
        betas=(recipe.optimizer.beta1, recipe.optimizer.beta2),
        weight_decay=recipe.optimizer.weight_decay,
    )
    if place:
        load_optimizer(place, policy, optimizer)
    problems = recipe.task.problems("train")
    held_out = recipe.task.problems("test")[: settings.evaluate_problems]
    store = anchor_store(recipe, folder, place, policy, problems, progress, watch)
    moving = store if recipe.pruning.spatial.source == "last_visit" else None

    def save() -> None:
        save_checkpoint(folder.checkpoints, progress, policy, optimizer, moving, recipe.model.path, settings.keep)
        watch("saved", {"step": progress.step})

    with graceful() as asked_to_stop:
        for step in range(progress.step, settings.steps):
            started = time.perf_counter()
            clock = Clock(policy.device)
            asked = batch(problems, settings.problems, settings.seed, step)
            repeated = [problem for problem in asked for _ in range(settings.group)]

            responses, graded = explore(recipe, policy, asked, store, step, clock)  # eq. 5 to 9
            advantage = recipe.credit(graded.reward, settings.group).to(policy.device)
            if moving is not None:
                remember(recipe, moving, policy, asked, responses, graded)

            for group in optimizer.param_groups:
                group["lr"] = recipe.optimizer.rate(step)
            try:
                learned = learn(recipe, policy, optimizer, accelerator, responses, advantage, step, clock)
            except DivergenceError as cause:
                saved = folder.write_rollouts(step + 1, records(repeated, responses, graded, advantage))
                raise DivergenceError(
                    f"step {step + 1}: {cause}; its rollouts are in {saved}; the last checkpoint is untouched; "
                    "lower optimizer.learning_rate or raise estimator.t_min, and start anew or --resume"
                ) from cause

            progress.step = step + 1
            progress.model_calls += sum(clock.calls.values())
            progress.seconds += time.perf_counter() - started
            line = {
                "step": progress.step,
                **describe(graded, responses, settings.group),
                **learned,
                **clock.metrics(),
                "calls/total": progress.model_calls,
                "seconds/total": round(progress.seconds, 3),
                "learning_rate": recipe.optimizer.rate(step),
            }
            if settings.audit_every and progress.step % settings.audit_every == 0:
                line |= audit_step(recipe, policy, asked, step)
            if settings.evaluate_every and progress.step % settings.evaluate_every == 0:
                found = evaluate(policy, recipe.task, held_out, recipe.sampler, settings.rollout_rows)
                line |= {"held_out/solved": found.solved, "held_out/total": found.total}
            if settings.rollouts_every and progress.step % settings.rollouts_every == 0:
                folder.write_rollouts(progress.step, records(repeated, responses, graded, advantage))
            folder.append_metrics(line)
            watch("step", line)
            if progress.step % settings.save_every == 0 or progress.step == settings.steps or asked_to_stop():
                save()
            if asked_to_stop() and progress.step < settings.steps:
                raise Interrupted
    return progress


def batch(problems: Sequence[Problem], count: int, seed: int, step: int) -> list[Problem]:
    """The problems of an RL step: epochs are seeded permutations laid end to end."""
    places = [divmod(index, len(problems)) for index in range(step * count, (step + 1) * count)]
    orders = {
        epoch: torch.randperm(len(problems), generator=stream(seed, epoch, "order")).tolist() for epoch, _ in places
    }
    return [problems[orders[epoch][position]] for epoch, position in places]


def _load(recipe: Recipe, place: Path | None, device: torch.device) -> MaskedPolicy:
    """The policy at the start of the run or at its checkpoint; a reference is always what the run started from."""
    choice, seed = recipe.model, recipe.training.seed
    wanted = recipe.objective.kl > 0 and choice.lora is None
    if place is None:
        policy = load_policy(choice, reference=wanted, device=device, seed=seed)
    else:
        policy = load_policy(replace(choice, path=str(place / "model"), lora=None), device=device)
        if wanted:
            policy.frozen = load_policy(choice, reference=True, device=device).frozen
    if choice.device_map:
        raise RecipeError(
            f"model.device_map is {choice.device_map}, which spreads layers for evaluation; leave it out of "
            "training, and make the model fit with model.checkpointing=true, model.dtype=bfloat16 or model.quantize=nf4"
        )
    if choice.quantize and device.type == "cpu":
        raise RecipeError(
            f"model.quantize is {choice.quantize} on a CPU, where bitsandbytes' 4-bit matrices pass no gradient on; "
            "train on a GPU, or leave model.quantize out; sampling and evaluation work on both"
        )
    if choice.lora is None:
        if choice.quantize:
            raise RecipeError(
                f"model.quantize is {choice.quantize} without model.lora; a 4-bit base is frozen and needs adapters to "
                "train; add model.lora.rank=128, or leave model.quantize out"
            )
        policy.model.requires_grad_(True)
    return policy
