"""Reinforcement learning for masked diffusion language models, with Spatio-Temporal Pruning.

`import stipule` loads nothing else. Each name below is imported from its module when it is first used
(docs/python.md).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names once more, for editors and type checkers
    from stipule.config.recipe import dump_recipe, load_recipe, parse_recipe
    from stipule.errors import StipuleError
    from stipule.estimators.elbo import Elbo
    from stipule.estimators.one_step import OneStep
    from stipule.estimators.token_logps import estimate_logps
    from stipule.evaluation.evaluate import Evaluation, evaluate
    from stipule.models.loading import ModelConfig, load_policy, save_policy
    from stipule.objectives.advantage import GroupRelative
    from stipule.objectives.grpo import Grpo
    from stipule.rng import make_generator
    from stipule.rollouts.anchors import AnchorStore
    from stipule.rollouts.pregenerate import pregenerate
    from stipule.rollouts.pruning import STP, ConfidenceCutoff, FixedCutoff, Pruning, SpatialPruning
    from stipule.rollouts.reward_batch import grade_responses
    from stipule.rollouts.sampler import SemiAutoregressiveSampler
    from stipule.run import Run, train
    from stipule.tasks.countdown import Countdown
    from stipule.tasks.sudoku import Sudoku
    from stipule.trainer.config import DiffusionGRPOConfig
    from stipule.trainer.trainer import DiffusionGRPOTrainer
    from stipule.types import LossInputs

__version__ = "0.2.0"

# Read by torch when it is imported. By default its threads spin while they wait for each other, and beside other
# programs a step takes several times as long (docs/speed.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MODULES = {
    # Recipes and runs
    "load_recipe": "config.recipe",
    "parse_recipe": "config.recipe",
    "dump_recipe": "config.recipe",
    "train": "run",
    "Run": "run",
    "DiffusionGRPOTrainer": "trainer.trainer",
    "DiffusionGRPOConfig": "trainer.config",
    "evaluate": "evaluation.evaluate",
    "Evaluation": "evaluation.evaluate",
    # Models and tasks
    "load_policy": "models.loading",
    "save_policy": "models.loading",
    "ModelConfig": "models.loading",
    "Sudoku": "tasks.sudoku",
    "Countdown": "tasks.countdown",
    # Sampling and pruning
    "SemiAutoregressiveSampler": "rollouts.sampler",
    "STP": "rollouts.pruning",
    "Pruning": "rollouts.pruning",
    "SpatialPruning": "rollouts.pruning",
    "FixedCutoff": "rollouts.pruning",
    "ConfidenceCutoff": "rollouts.pruning",
    "pregenerate": "rollouts.pregenerate",
    "AnchorStore": "rollouts.anchors",
    "make_generator": "rng",
    # Rewards, likelihoods, losses
    "grade_responses": "rollouts.reward_batch",
    "GroupRelative": "objectives.advantage",
    "Elbo": "estimators.elbo",
    "OneStep": "estimators.one_step",
    "estimate_logps": "estimators.token_logps",
    "Grpo": "objectives.grpo",
    "LossInputs": "types",
    "StipuleError": "errors",
}
__all__ = [
    "STP",
    "AnchorStore",
    "ConfidenceCutoff",
    "Countdown",
    "DiffusionGRPOConfig",
    "DiffusionGRPOTrainer",
    "Elbo",
    "Evaluation",
    "FixedCutoff",
    "GroupRelative",
    "Grpo",
    "LossInputs",
    "ModelConfig",
    "OneStep",
    "Pruning",
    "Run",
    "SemiAutoregressiveSampler",
    "SpatialPruning",
    "StipuleError",
    "Sudoku",
    "dump_recipe",
    "estimate_logps",
    "evaluate",
    "grade_responses",
    "load_policy",
    "load_recipe",
    "make_generator",
    "parse_recipe",
    "pregenerate",
    "save_policy",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'stipule' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"stipule.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
