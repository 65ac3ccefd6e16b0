"""The arguments of a run under the names of TRL's GRPOConfig."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from stipule.estimators.estimator import Estimator
from stipule.rollouts.pruning import Pruning
from stipule.rollouts.unmasking import UnmaskingRule
from stipule.trainer.arguments import offered_arguments

Config = TypeVar("Config")


def _with_arguments_of_trl(config: type[Config]) -> type[Config]:
    """Lets the constructor accept arguments of TRL that ask for what happens here anyway, and refuse the others."""
    constructor = config.__init__

    @functools.wraps(constructor)
    def checked(self: Config, **given: Any) -> None:
        constructor(self, **offered_arguments(given, [field.name for field in fields(config)]))  # type: ignore[arg-type]

    config.__init__ = checked  # type: ignore[method-assign, assignment]
    return config


@_with_arguments_of_trl
@dataclass(kw_only=True)
class DiffusionGRPOConfig:
    """TRL's names where TRL has one; the defaults are those of a recipe (table 8 of the paper), not TRL's.

    TRL counts updates of the optimizer, of which an RL step has `num_iterations`; `max_steps`, `warmup_steps`,
    `logging_steps`, `save_steps` and `eval_steps` do so, too, and are rounded up to whole RL steps. Raises RecipeError
    for an argument of TRL that is not offered, with the reason, and for one that does not exist.
    """

    output_dir: str | Path = "trainer_output"  # the run folder

    per_device_train_batch_size: int = 6  # responses of a micro-batch
    gradient_accumulation_steps: int = 2  # micro-batches of an update, in each process
    num_generations: int = 6  # G, responses per prompt
    num_iterations: int = 4  # mu, updates per batch of responses
    num_train_epochs: float = 3.0  # if max_steps is not given
    max_steps: int = -1  # updates of the optimizer
    seed: int = 42  # of everything random: two runs with one seed are equal

    learning_rate: float = 3e-6  # constant after the warm-up
    weight_decay: float = 0.1  # of AdamW
    adam_beta1: float = 0.9  # of AdamW
    adam_beta2: float = 0.99  # of AdamW
    max_grad_norm: float = 0.2  # gradient clipping
    warmup_steps: int = 0  # updates

    beta: float = 0.04  # coefficient of the KL divergence from the reference
    epsilon: float = 0.2  # clip range of eq. 1
    epsilon_high: float | None = None  # upper clip range; None: the same as epsilon
    # grpo: mean over responses of the mean over tokens (eq. 1); dapo: mean over all tokens; bnpo: that of a micro-batch
    loss_type: Literal["grpo", "dapo", "bnpo"] = "grpo"
    importance_sampling_level: Literal["token", "sequence"] = "token"  # sequence: GSPO
    scale_rewards: bool | Literal["group", "none"] = True  # divide by the deviation of the group
    reward_weights: Sequence[float] | None = None  # one for each function; None: 1 each

    max_completion_length: int = 256  # L, tokens
    temperature: float = 0.9  # of the sampled tokens; 0 is greedy

    bf16: bool = False  # compute float32 weights in bfloat16
    gradient_checkpointing: bool = False  # compute activations again in the backward pass
    activation_checkpointing: bool | None = None  # the new name of gradient_checkpointing
    model_init_kwargs: Mapping[str, Any] | None = None  # dtype, attn_implementation

    report_to: str | Sequence[str] = "none"  # trackers that receive a copy of metrics.jsonl
    logging_steps: int = 10  # updates between calls of on_log; metrics.jsonl has every RL step
    log_completions: bool = True  # save responses every `logging_steps`, for the report
    disable_tqdm: bool = False  # show no progress
    save_steps: int = 500  # updates between checkpoints
    save_total_limit: int = 2  # checkpoints to keep
    eval_strategy: Literal["no", "steps"] = "no"  # steps: greedy responses to eval_dataset
    eval_steps: int | None = None  # updates between evaluations; None: logging_steps

    # Only here, not in TRL:

    diffusion_steps: int | None = None  # N, forward passes of a rollout without pruning; None: two tokens in each
    block_length: int | None = None  # tokens; None: 32, or the whole response if 32 does not divide its length
    remasking: UnmaskingRule | str = "low_confidence"  # the order of unmasking; random, or a rule of your own
    confidence_threshold: float | None = None  # also unmask every token of the block that is at least this probable
    pruning: Pruning | None = None  # e.g. STP(gamma=0.05, t_cutoff=0.05); None: none
    # an object, or a kind with its default settings (built in, or path/to/file.py:Class); None: the ELBO with exact,
    # stratified, cyclic masks, whose weights are bounded, as in the quickstart
    estimator: Estimator | str | None = None
    answer_column: str | None = None  # column of the correct answer, which anchors never contain
    overrides: Sequence[str] = ()  # any other setting of a recipe, as section.key=value
