"""The training loop: RL steps, and around them records, alarms, evaluations and checkpoints."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch

from stipule.errors import DivergenceError, RewardError
from stipule.evaluation.agreement import compute_agreement
from stipule.object_import import settings_of
from stipule.rng import make_generator
from stipule.tasks.problem import Problem
from stipule.training.alarm_monitor import AlarmMonitor
from stipule.training.anchor_source import Watch, anchors_change, update_accuracies, update_anchors
from stipule.training.checkpoint import TrainState, save_checkpoint
from stipule.training.context import RunContext
from stipule.training.distributed import lost_process_reported
from stipule.training.interrupt import Interrupted, stop_after_step
from stipule.training.monitoring import eval_metrics, exact_rollouts, unpruned_metrics
from stipule.training.nfe_savings import nfe_metrics
from stipule.training.records import rollout_metrics, rollout_records
from stipule.training.rl_step import StepDiverged, StepResult, rl_step
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe
from stipule.training.setup import start_run
from stipule.training.step_timer import StepTimer, peak_memory
from stipule.training.tracking import Trackers


def train(recipe: Recipe, folder: RunFolder, watch: Watch = lambda event, data: None) -> TrainState:
    """Runs a recipe in its folder, from the newest checkpoint there. `watch` is called for anchors, steps and saves;
    what it returns after a step can end the run.

    Resuming is exact: after a kill at any moment the same weights come out, because a checkpoint is whole or absent and
    all random numbers depend on (seed, step, purpose). Raises RecipeError if another process trains in the folder,
    Interrupted after a signal or if `watch` asks for the end (the step is finished and saved), StipuleError if another
    rank has ended.
    """
    with folder.sole_writer(), lost_process_reported():
        return _train(recipe, folder, watch)


def _train(recipe: Recipe, folder: RunFolder, watch: Watch) -> TrainState:
    settings, problems = recipe.training, recipe.task.problems("train")
    held_out = recipe.task.problems("test")[: settings.evaluate_problems] if settings.evaluate_every else ()
    run = start_run(recipe, folder, problems, watch)
    monitor = AlarmMonitor(recipe.alarms, folder, watch, run.state.step)
    trackers = Trackers(recipe.tracking, folder.path, settings_of(recipe))
    with stop_after_step() as stop_signal, closing(trackers):
        for step in range(run.state.step, settings.steps):
            batch = problems_of_step(problems, settings.prompts_per_step, settings.seed, step)
            line, result = _take_step(run, batch, step, folder, monitor)
            if settings.unpruned_every and run.state.step % settings.unpruned_every == 0:
                line |= unpruned_metrics(run, batch, step)
            if settings.evaluate_every and run.state.step % settings.evaluate_every == 0:
                line |= eval_metrics(run, held_out)
            if settings.rollouts_every and run.state.step % settings.rollouts_every == 0:
                folder.write_rollouts(run.state.step, _records(run, batch, result))
            monitor.check(line)
            folder.append_metrics(line)
            trackers.log(line)
            is_to_end = watch("step", line)
            monitor.stop_if_requested()
            requested = stop_signal() or (signal.SIGINT if is_to_end else 0)
            signal_number = run.processes.all_reduce_max(requested)  # of any rank
            if run.state.step % settings.save_every == 0 or run.state.step == settings.steps or signal_number:
                _save(run, folder, monitor)
                watch("saved", {"step": run.state.step})
            if signal_number and run.state.step < settings.steps:
                raise Interrupted(signal_number)
    return run.state


def _take_step(
    run: RunContext, problems: Sequence[Problem], step: int, folder: RunFolder, monitor: AlarmMonitor
) -> tuple[dict[str, Any], StepResult]:
    """One RL step and its line of metrics. A step that fails is recorded before the error is raised."""
    started = time.perf_counter()
    run.timer = StepTimer(run.policy.device)
    learning_rate = run.recipe.optimizer.learning_rate_at(step)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate
    try:
        exact = exact_rollouts(run, problems, step)
        result = rl_step(run, problems, step)
    except RewardError as cause:
        monitor.record_failure(step + 1, cause, "not_a_number")
        raise
    except StepDiverged as cause:
        monitor.record_failure(step + 1, cause, "diverged")
        path = folder.write_rollouts(step + 1, _records(run, problems, cause.result))
        raise DivergenceError(
            f"step {step + 1}: {cause}; its rollouts are in {path}; the last checkpoint is untouched; "
            "lower optimizer.learning_rate or raise estimator.t_min, and start again or --resume"
        ) from cause
    approximation: dict[str, float] = {}
    if exact:
        agreement = compute_agreement(exact, (result.rollouts, result.rewards), run.num_generations)
        approximation = agreement.metrics()
    update_anchors(run, problems, result.rollouts, result.rewards)
    update_accuracies(run, problems, result.rewards)
    run.state.step = step + 1
    run.state.model_calls += sum(run.timer.nfe.values())
    run.state.computed_tokens += sum(run.timer.nfe_tokens.values())
    run.state.seconds += time.perf_counter() - started
    line = {
        "step": run.state.step,
        **rollout_metrics(result.rewards, result.rollouts, run.num_generations, run.policy.eos_id),
        **nfe_metrics(run.recipe, result.rollouts),
        **result.metrics,
        **approximation,
        **run.timer.metrics(),
        "nfe/total": run.state.model_calls,
        "nfe_tokens/total": run.state.computed_tokens,
        "time/total": round(run.state.seconds, 3),
        "learning_rate": learning_rate,
    }
    if (memory := peak_memory(run.policy.device)) is not None:
        line["memory/peak"] = memory
    return line, result


def _records(run: RunContext, problems: Sequence[Problem], result: StepResult) -> list[dict[str, Any]]:
    repeated = [problem for problem in problems for _ in range(run.num_generations)]
    return rollout_records(repeated, result.rollouts, result.rewards, result.advantages, run.policy.token_label)


def _save(run: RunContext, folder: RunFolder, monitor: AlarmMonitor) -> None:
    run.state.metrics_checksum = folder.metrics_checksum()
    save_checkpoint(
        folder.checkpoints,
        run.state,
        run.policy,
        run.optimizer,
        run.anchor_store if anchors_change(run.recipe) else None,
        run.recipe.model.path,
        run.recipe.training.save_total_limit,
        monitor.last_good_checkpoint(),
        run.processes.is_main_process,
    )


def problems_of_step(problems: Sequence[Problem], count: int, seed: int, step: int) -> list[Problem]:
    """The problems of an RL step. Epochs are seeded permutations, one after the other."""
    positions = [divmod(index, len(problems)) for index in range(step * count, (step + 1) * count)]
    orders = {
        epoch: torch.randperm(len(problems), generator=make_generator(seed, epoch, "order")).tolist()
        for epoch, _ in positions
    }
    return [problems[orders[epoch][position]] for epoch, position in positions]
