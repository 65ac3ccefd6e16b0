"""From the arguments of a trainer to a recipe."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from stipule.config.recipe import parse_recipe
from stipule.errors import RecipeError
from stipule.estimators.elbo import Elbo
from stipule.estimators.estimator import Estimator
from stipule.object_import import settings_of
from stipule.trainer.config import DiffusionGRPOConfig
from stipule.training.settings import Recipe


def recipe_of(args: DiffusionGRPOConfig, model: str, task: Mapping[str, Any], num_problems: int) -> Recipe:
    """The recipe of a trainer; `task` is its task section. Raises RecipeError for arguments that do not fit."""
    if args.num_iterations < 1:
        raise RecipeError(f"num_iterations is {args.num_iterations}; it must be 1 or more")
    data = {
        "task": task,
        "model": {"path": model, **_model_section(args)},
        "sampler": _sampler_section(args),
        "pruning": settings_of(args.pruning) if args.pruning is not None else {},
        "estimator": _estimator_section(args.estimator),
        "advantage": _advantage_section(args),
        "objective": _objective_section(args),
        "optimizer": {
            "learning_rate": args.learning_rate,
            "beta1": args.adam_beta1,
            "beta2": args.adam_beta2,
            "weight_decay": args.weight_decay,
            "max_grad_norm": args.max_grad_norm,
            "warmup_steps": rl_steps(args, args.warmup_steps),
        },
        "training": _training_section(args, num_problems, task.get("test") is not None),
        "tracking": _trackers(args.report_to),
    }
    return parse_recipe(data, args.overrides)


def rl_steps(args: DiffusionGRPOConfig, updates: float) -> int:
    """RL steps with at least this many updates of the optimizer."""
    return math.ceil(updates / args.num_iterations)


def _model_section(args: DiffusionGRPOConfig) -> dict[str, Any]:
    names = {"dtype": "dtype", "torch_dtype": "dtype", "attn_implementation": "attention"}
    given = dict(args.model_init_kwargs or {})
    unknown = [name for name in given if name not in names]
    if unknown:
        raise RecipeError(
            f"model_init_kwargs has {', '.join(unknown)}; allowed are {', '.join(names)}; other settings of the model "
            "are overrides=['model.KEY=VALUE']"
        )
    section = {names[name]: str(value).removeprefix("torch.") for name, value in given.items()}
    checkpointing = args.gradient_checkpointing or bool(args.activation_checkpointing)
    return {**section, "autocast": args.bf16, "gradient_checkpointing": checkpointing}


def _sampler_section(args: DiffusionGRPOConfig) -> dict[str, Any]:
    length = args.max_completion_length
    block = args.block_length or (32 if length % 32 == 0 else length)
    return {
        "gen_length": length,
        "block_length": block,
        "steps": args.diffusion_steps or (length // block) * max(1, block // 2),
        "remasking": settings_of(args.remasking),
        "temperature": args.temperature,
        "confidence_threshold": args.confidence_threshold,
    }


def _estimator_section(estimator: Estimator | str | None) -> dict[str, Any]:
    if isinstance(estimator, str):
        return {"kind": estimator}
    chosen = estimator or Elbo(masks="exact", timestep_sampling="stratified", subsets="cyclic")
    return dict(settings_of(chosen))


def _advantage_section(args: DiffusionGRPOConfig) -> dict[str, Any]:
    scale = {"group": True, "none": False}.get(str(args.scale_rewards), args.scale_rewards)
    if not isinstance(scale, bool):
        raise RecipeError(
            f"scale_rewards is {args.scale_rewards!r}; rewards are divided by the deviation of their group (True or "
            "'group') or not at all (False or 'none')"
        )
    return {"kind": "group_relative", "scale_rewards": scale}


def _objective_section(args: DiffusionGRPOConfig) -> dict[str, Any]:
    clip = {"epsilon": args.epsilon, "epsilon_high": args.epsilon_high, "beta": args.beta}
    if args.importance_sampling_level == "sequence":
        return {"kind": "gspo", **clip}
    if args.importance_sampling_level != "token":
        raise RecipeError(f"importance_sampling_level is {args.importance_sampling_level!r}; allowed: token, sequence")
    losses: dict[str, dict[str, Any]] = {
        "grpo": {},
        "dapo": {"loss_aggregation": "token"},
        "bnpo": {"loss_aggregation": "token", "match_published_code": True},
    }
    if args.loss_type not in losses:
        raise RecipeError(
            f"loss_type is {args.loss_type!r}; allowed are {', '.join(losses)} (docs/from-trl.md says what each "
            "averages); a sum that is not divided by the length is overrides=['objective.kind=reinforce']"
        )
    return {"kind": "grpo", **clip, **losses[args.loss_type]}


def _training_section(args: DiffusionGRPOConfig, num_problems: int, has_eval: bool) -> dict[str, Any]:
    prompts = _prompts_per_step(args)
    steps = rl_steps(args, args.max_steps) if args.max_steps > 0 else math.ceil(
        args.num_train_epochs * num_problems / prompts
    )  # fmt: skip
    every = rl_steps(args, max(1, args.logging_steps))
    return {
        "steps": max(1, steps),
        "prompts_per_step": prompts,
        "num_generations": args.num_generations,
        "num_iterations": args.num_iterations,
        "micro_batch_size": args.per_device_train_batch_size,
        "seed": args.seed,
        "save_every": rl_steps(args, args.save_steps),
        "save_total_limit": args.save_total_limit,
        "rollouts_every": every if args.log_completions else 0,
        "evaluate_every": _evaluate_every(args, has_eval),
        "evaluate_problems": 1_000_000,  # all of eval_dataset
    }


def _prompts_per_step(args: DiffusionGRPOConfig) -> int:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    responses = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    if responses < 1 or args.num_generations < 2 or responses % args.num_generations:
        raise RecipeError(
            f"per_device_train_batch_size {args.per_device_train_batch_size} x gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps} x {processes} processes = {responses} responses per update; it must "
            f"be a multiple of num_generations, which is {args.num_generations} and must be 2 or more"
        )
    return responses // args.num_generations


def _evaluate_every(args: DiffusionGRPOConfig, has_eval: bool) -> int:
    if args.eval_strategy not in ("no", "steps"):
        raise RecipeError(f"eval_strategy is {args.eval_strategy!r}; allowed: no, steps (with eval_steps)")
    if args.eval_strategy == "no":
        return 0
    if not has_eval:
        raise RecipeError("eval_strategy is 'steps' but there is no eval_dataset; give one, or eval_strategy='no'")
    return rl_steps(args, args.eval_steps or args.logging_steps)


def _trackers(report_to: str | Sequence[str]) -> list[str]:
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    if "all" in names:
        raise RecipeError("report_to is 'all'; name the trackers: trackio, wandb, tensorboard, mlflow, or 'none'")
    return [name for name in names if name != "none"]
