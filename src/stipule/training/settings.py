"""The components and settings of an RL run. Defaults are those of table 8 of the paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from stipule.errors import RecipeError
from stipule.estimators.autoregressive import Autoregressive
from stipule.estimators.coupled import Coupled
from stipule.estimators.elbo import Elbo
from stipule.estimators.estimator import Estimator
from stipule.estimators.mean_log_prob import MeanLogProb
from stipule.estimators.one_step import OneStep
from stipule.estimators.spg import Spg
from stipule.estimators.trajectory import Trajectory
from stipule.estimators.unigrpo import UniGrpo
from stipule.models.loading import ModelConfig
from stipule.object_import import kind_of
from stipule.objectives.advantage import AdvantageFunction, GroupRelative, Rloo, Wd1Weights
from stipule.objectives.grpo import Grpo
from stipule.objectives.gspo import Gspo
from stipule.objectives.objective import Objective
from stipule.objectives.reinforce import Reinforce
from stipule.rollouts.pruning import Pruning
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.answer_content import has_answer_tags
from stipule.tasks.arithmetic import Arithmetic
from stipule.tasks.countdown import Countdown
from stipule.tasks.custom import Custom
from stipule.tasks.gsm8k import Gsm8k
from stipule.tasks.math import Math
from stipule.tasks.problem import Task
from stipule.tasks.sudoku import Sudoku
from stipule.training.alarms import Alarms
from stipule.training.tracking import Tracker

# The classes that `kind:` selects from. To add one, add its name here. The last of each row is the protocol, which a
# class of your own follows (docs/custom-parts.md).
AnyTask = Sudoku | Countdown | Gsm8k | Math | Arithmetic | Custom | Task
AnyEstimator = Elbo | MeanLogProb | OneStep | UniGrpo | Spg | Coupled | Trajectory | Autoregressive | Estimator
AnyAdvantage = GroupRelative | Rloo | Wd1Weights | AdvantageFunction
AnyObjective = Grpo | Gspo | Reinforce | Objective


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with a linear warm-up, then a constant learning rate."""

    learning_rate: float = 3e-6  # table 8
    beta1: float = 0.9  # table 8
    beta2: float = 0.99  # table 8
    weight_decay: float = 0.1  # table 8
    max_grad_norm: float = 0.2  # gradient clipping; the value of d1 and SPG, because the paper gives none
    warmup_steps: int = 0  # RL steps in which the learning rate rises from 0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.max_grad_norm <= 0:
            raise RecipeError(
                f"optimizer has learning_rate {self.learning_rate} and max_grad_norm {self.max_grad_norm}; both must "
                "be above 0; try 3e-6 and 0.2"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.weight_decay >= 0 and self.warmup_steps >= 0):
            raise RecipeError(
                f"optimizer has beta1 {self.beta1}, beta2 {self.beta2}, weight_decay {self.weight_decay}, warmup_steps "
                f"{self.warmup_steps}; beta1 and beta2 must lie in [0, 1), the others must be 0 or more"
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of an RL step (from 0)."""
        return self.learning_rate * min(1.0, (step + 1) / (self.warmup_steps + 1))


@dataclass(frozen=True, kw_only=True)
class Training:
    """Number of steps, batch sizes, and how often something is saved or evaluated."""

    steps: int = 1000  # RL steps
    prompts_per_step: int = 2  # over all processes; table 8: batch 6 x accumulation 2 / group 6 on each GPU
    num_generations: int = 6  # G, responses per prompt (table 8)
    num_iterations: int = 4  # mu, inner updates per step (table 8)
    rollout_batch_size: int = 64  # responses denoised together in a process; a new row replaces each finished one
    # Responses per micro-batch of an update, each with its K mask samples. Fewer need less memory; results are equal.
    micro_batch_size: int = 6
    seed: int = 42
    save_every: int = 100  # RL steps between checkpoints
    save_total_limit: int = 2  # number of checkpoints to keep
    rollouts_every: int = 10  # RL steps between saved rollouts; 0: never
    evaluate_every: int = 0  # RL steps between greedy evaluations on eval problems; 0: never
    evaluate_problems: int = 128
    unpruned_every: int = 0  # RL steps between rollouts of the step's problems without pruning; 0: never
    # RL steps between exact rollouts of the step's problems; only if sampler.confidence_threshold or sampler.cache is
    # set; 0: never
    agreement_every: int = 10

    def __post_init__(self) -> None:
        positive = ("steps", "prompts_per_step", "num_iterations", "rollout_batch_size", "micro_batch_size")
        for name in (*positive, "save_every", "save_total_limit"):
            if getattr(self, name) < 1:
                raise RecipeError(f"training.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in (
            "seed",
            "rollouts_every",
            "evaluate_every",
            "evaluate_problems",
            "unpruned_every",
            "agreement_every",
        ):
            if getattr(self, name) < 0:
                raise RecipeError(f"training.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.num_generations < 2:
            raise RecipeError(
                f"training.num_generations is {self.num_generations}; an advantage compares the responses to a prompt, "
                "so it needs 2 or more; try 6"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One RL run. Sampler, pruning, estimator, advantage and objective can be combined freely."""

    task: AnyTask
    model: ModelConfig = field(default_factory=ModelConfig)
    sampler: SemiAutoregressiveSampler = field(default_factory=SemiAutoregressiveSampler)
    pruning: Pruning = field(default_factory=Pruning)
    estimator: AnyEstimator = field(default_factory=Elbo)
    advantage: AnyAdvantage = field(default_factory=GroupRelative)
    objective: AnyObjective = field(default_factory=Grpo)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    alarms: Alarms = field(default_factory=Alarms)
    tracking: tuple[Tracker, ...] = ()  # trackers that receive a copy of metrics.jsonl

    # Read where a recipe is validated: an instance of a protocol is valid as it is.
    __pydantic_config__: ClassVar[dict[str, bool]] = {"arbitrary_types_allowed": True}

    def __post_init__(self) -> None:
        if self.sampler.cache is not None and self.model.attention == "flash_attention_2":
            raise RecipeError(
                "sampler.cache is set and model.attention is flash_attention_2, which cannot mask the padding of "
                "cached keys; set model.attention=sdpa, or remove sampler.cache"
            )
        if self.sampler.block_schedule == "fixed" and self.pruning.temporal.planned_cutoff.scope == "block":
            raise RecipeError(
                "sampler.block_schedule is fixed and pruning.temporal.scope is block; a fixed schedule has one finish "
                "for the whole response; set pruning.temporal.scope=global, or sampler.block_schedule=carry"
            )
        needed = getattr(self.task, "response_length", None)
        if needed is not None and self.sampler.gen_length < needed:
            raise RecipeError(
                f"sampler.gen_length is {self.sampler.gen_length}, but a complete response of this task has {needed} "
                f"tokens, so every response would be cut off; set sampler.gen_length to {needed} or more"
            )
        self.estimator.check_length(self.sampler.gen_length, self.sampler.block_length)
        if not self.estimator.depends_on_advantage:
            return
        if not self.advantage.has_both_signs:
            is_wd1 = isinstance(self.advantage, Wd1Weights)
            raise RecipeError(
                f"estimator.kind is {kind_of(self.estimator)}, which needs advantages of both signs, but "
                f"advantage.kind {kind_of(self.advantage)}{' with positive_only=true' if is_wd1 else ''} gives none "
                f"below 0; set {'advantage.positive_only=false, or ' if is_wd1 else ''}advantage.kind=group_relative"
            )
        if self.objective.beta > 0:
            raise RecipeError(
                f"objective.beta is {self.objective.beta}, but estimator.kind {kind_of(self.estimator)} estimates a "
                "different bound for each sign of the advantage, so the KL to the reference would depend on the "
                "reward; set objective.beta=0, or estimator.kind=elbo"
            )

    def settings_without_effect(self) -> list[str]:
        """A sentence for each setting that is valid and changes nothing here, or is not what its name promises."""
        sentences, spatial = [], self.pruning.spatial
        if self.sampler.temperature == 0 and self.pruning.temporal.planned_cutoff.tail == "sample":
            sentences.append(
                "pruning.temporal.tail is sample with sampler.temperature 0: the last tokens are the most probable "
                "ones, as with argmax; set sampler.temperature to draw them"
            )
        if spatial.ratio > 0 and spatial.keep == "random" and spatial.confidence == "fully_masked":
            sentences.append(
                "pruning.spatial.confidence is fully_masked with keep random: the confidences are computed and not "
                "used; set pruning.spatial.keep to confident, or confidence to when_unmasked"
            )
        if spatial.ratio > 0 and spatial.protect == "answer_content" and not has_answer_tags(self.task):
            sentences.append(
                "pruning.spatial.protect is answer_content, but responses to these prompts have no tags: their whole "
                "answer stays protected, as with protect answer"
            )
        if self.sampler.first_position == "random" and self.sampler.remasking == "random":
            sentences.append(
                "sampler.first_position is random with remasking random, where every position is random; leave "
                "first_position out, or set sampler.remasking=low_confidence"
            )
        if isinstance(self.estimator, MeanLogProb) and isinstance(self.objective, Gspo):
            sentences.append(
                "objective.kind is gspo with estimator.kind mean_log_prob, whose score is no log-likelihood, so its "
                "ratio of sequences is no ratio of probabilities; set estimator.kind=elbo, or objective.kind=grpo"
            )
        return sentences
