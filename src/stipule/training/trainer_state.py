"""The `trainer_state` that a reward function may ask for, as in TRL."""

from __future__ import annotations

import math
from typing import Any

from stipule.tasks.problem import BatchGrader
from stipule.training.context import RunContext


def trainer_state(run: RunContext, step: int) -> Any:
    """A `transformers.TrainerState` of this step; None for tasks without reward functions, which do not read it.

    Its clock is the RL step: `global_step` steps are finished (TRL counts updates of the optimizer). `epoch` is the
    fraction of training problems sampled so far; `log_history` is empty.
    """
    if not isinstance(run.recipe.task, BatchGrader):
        return None
    from transformers import TrainerState  # slow to import

    settings = run.recipe.training
    steps_per_epoch = len(run.recipe.task.problems("train")) / settings.prompts_per_step
    return TrainerState(
        epoch=step / steps_per_epoch,
        global_step=step,
        max_steps=settings.steps,
        num_train_epochs=math.ceil(settings.steps / steps_per_epoch),
        train_batch_size=settings.prompts_per_step * settings.num_generations,
        logging_steps=1,
        eval_steps=settings.evaluate_every,
        save_steps=settings.save_every,
        is_local_process_zero=run.processes.is_main_process,
        is_world_process_zero=run.processes.is_main_process,
    )
