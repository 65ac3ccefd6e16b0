"""Everything that the functions of a training step share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.anchors import AnchorStore
from stipule.training.checkpoint import TrainState
from stipule.training.distributed import DistributedContext, check_accelerate_settings
from stipule.training.settings import Recipe
from stipule.training.step_timer import StepTimer


@dataclass
class RunContext:
    """A run in progress. `dataclasses.replace` gives the same run under another recipe, with another timer."""

    recipe: Recipe
    policy: MaskedPolicy
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    processes: DistributedContext
    timer: StepTimer
    state: TrainState
    anchor_store: AnchorStore | None  # None: no spatial pruning

    @classmethod
    def single_process(cls, recipe: Recipe, policy: MaskedPolicy, optimizer: torch.optim.Optimizer) -> RunContext:
        """A run at its first step, in this process only, without anchors."""
        check_accelerate_settings()
        accelerator = Accelerator(cpu=policy.device.type == "cpu")
        processes = DistributedContext(accelerator)
        return cls(recipe, policy, optimizer, accelerator, processes, StepTimer(policy.device), TrainState(), None)

    @property
    def num_generations(self) -> int:
        """G, responses per prompt."""
        return self.recipe.training.num_generations
