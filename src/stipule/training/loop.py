"""THE LOOP: one RL step as a straight line (architecture in README.md, equations in docs/papers.md)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import torch

from stipule.errors import DivergenceError, RecipeError, RewardError
from stipule.models.loading import load_policy
from stipule.models.memory import check_remembers
from stipule.models.policy import MaskedPolicy
from stipule.models.sharding import parameter_groups, shard
from stipule.streams import stream
from stipule.tasks.problem import Problem
from stipule.training.anchoring import Watch, anchor_store, check_source, moving_anchors, remember, shares_solved
from stipule.training.checkpoint import (
    Progress,
    load_optimizer,
    newest_checkpoint,
    read_progress,
    save_checkpoint,
)
from stipule.training.clock import Clock, peak_memory
from stipule.training.explore import agreement_step, audit_step, explore, held_out_step
from stipule.training.folder import RunFolder
from stipule.training.guard import Guard
from stipule.training.interrupt import Interrupted, graceful
from stipule.training.ranks import gather_ranks, sharding_asked
from stipule.training.records import describe, records
from stipule.training.settings import Recipe
from stipule.training.tracking import Trackers, check_trackers
from stipule.training.update import learn


def train(recipe: Recipe, folder: RunFolder, watch: Watch = lambda event, data: None) -> Progress:
    """Runs a recipe in its folder, from the newest checkpoint there.
    `watch` is told of anchors, steps and saves.

    Continuing is exact: after a kill at any moment the same weights come out, because a checkpoint is whole or absent
    and all randomness is a function of (seed, step, purpose).
    """
    settings = recipe.training
    accelerator, ranks = gather_ranks(settings.problems)
    place = ranks.collect([newest_checkpoint(folder.checkpoints)])[0]  # what the first rank sees, all begin with
    progress = read_progress(place) if place else Progress()
    folder.forget_after(progress.step)

    check_source(recipe.pruning.spatial)
    check_trackers(recipe.tracking)
    sharding = sharding_asked()
    if sharding and moving_anchors(recipe):
        raise RecipeError(
            "pruning.spatial.source is last_visit and the launch asks for sharded weights; such a store carries "
            "a fingerprint of the weights, which no rank holds; set pruning.spatial.source=pregenerated, or launch "
            "with recipes/launch/ddp.yaml"
        )
    if sharding and recipe.sampler.cache is not None:
        raise RecipeError(
            f"sampler.cache is {recipe.sampler.cache.kind} and the launch asks for sharded weights, where every rank "
            "must make the same calls: full and partial ones would wait for each other; leave sampler.cache out, or "
            "launch with recipes/launch/ddp.yaml"
        )
    policy = _load(recipe, place, accelerator.device)
    if recipe.sampler.cache is not None:
        check_remembers(policy.family)
    problems = recipe.task.problems("train")
    held_out = recipe.task.problems("test")[: settings.evaluate_problems]
    store = anchor_store(recipe, folder, place, policy, problems, progress, watch, ranks)
    moving = store if moving_anchors(recipe) else None
    if sharding and ranks.world > 1:
        shard(policy, regather=sharding == "zero3")
    optimizer = torch.optim.AdamW(
        parameter_groups(policy),
        lr=recipe.optimizer.learning_rate,
        betas=(recipe.optimizer.beta1, recipe.optimizer.beta2),
        weight_decay=recipe.optimizer.weight_decay,
    )
    if place:
        load_optimizer(place, policy, optimizer)

    guard = Guard(recipe.alarms, folder, watch, progress.step)

    def save() -> None:
        save_checkpoint(
            folder.checkpoints,
            progress,
            policy,
            optimizer,
            moving,
            recipe.model.path,
            settings.keep,
            guard.last_good(),
            ranks.first,
        )
        watch("saved", {"step": progress.step})

    trackers = closing(Trackers(recipe.tracking, folder.path, asdict(recipe)))
    with graceful() as asked_to_stop, trackers as mirrors:
        for step in range(progress.step, settings.steps):
            started = time.perf_counter()
            clock = Clock(policy.device)
            asked = batch(problems, settings.problems, settings.seed, step)
            repeated = [problem for problem in asked for _ in range(settings.group)]

            try:
                visits = progress.solved  # eq. 5 to 9:
                responses, graded = explore(recipe, policy, asked, store, step, clock, ranks, visits)
            except RewardError as cause:
                guard.broken(step + 1, cause, "not_a_number")
                raise
            agreed = {}
            if settings.agreement_every and (step + 1) % settings.agreement_every == 0 and recipe.sampler.approximate:
                agreed = agreement_step(recipe, policy, asked, store, step, ranks, visits, (responses, graded))
            advantage = recipe.credit(graded.reward, settings.group).to(policy.device)
            if moving is not None:
                remember(recipe, moving, policy, asked, responses, graded)
            progress.solved |= shares_solved(recipe, asked, graded)

            for group in optimizer.param_groups:
                group["lr"] = recipe.optimizer.rate(step)
            try:
                learned = learn(
                    recipe, policy, optimizer, accelerator, responses, advantage, step, clock, progress.surprise
                )
            except DivergenceError as cause:
                guard.broken(step + 1, cause, "diverged")
                saved = folder.write_rollouts(step + 1, records(repeated, responses, graded, advantage, policy.label))
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
                **agreed,
                **clock.metrics(),
                "calls/total": progress.model_calls,
                "seconds/total": round(progress.seconds, 3),
                "learning_rate": recipe.optimizer.rate(step),
            }
            if (memory := peak_memory(policy.device)) is not None:
                line["memory/peak"] = memory
            if settings.audit_every and progress.step % settings.audit_every == 0:
                line |= audit_step(recipe, policy, asked, step, ranks)
            if settings.evaluate_every and progress.step % settings.evaluate_every == 0:
                line |= held_out_step(recipe, policy, held_out, ranks)
            if settings.rollouts_every and progress.step % settings.rollouts_every == 0:
                folder.write_rollouts(progress.step, records(repeated, responses, graded, advantage, policy.label))
            guard.check(line)
            folder.append_metrics(line)
            mirrors.log(line)
            watch("step", line)
            guard.end_if_asked()
            stopping = ranks.any(asked_to_stop())
            if progress.step % settings.save_every == 0 or progress.step == settings.steps or stopping:
                save()
            if stopping and progress.step < settings.steps:
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
