"""What an RL run is made of: its components, optimizer, batch and steps. Defaults are table 8 of the paper."""

from __future__ import annotations

from dataclasses import dataclass, field

from stipule.errors import RecipeError
from stipule.estimators.autoregressive import Autoregressive
from stipule.estimators.coupled import Coupled
from stipule.estimators.elbo import Elbo
from stipule.estimators.one_step import OneStep
from stipule.estimators.spg import Spg
from stipule.estimators.trajectory import Trajectory
from stipule.estimators.unigrpo import UniGrpo
from stipule.models.loading import ModelChoice
from stipule.objectives.credit import Exponential, GroupRelative, LeaveOneOut
from stipule.objectives.grpo import Grpo
from stipule.objectives.policy_gradient import PolicyGradient
from stipule.objectives.sequence import SequenceRatio
from stipule.rollouts.denoise import BlockDenoiser
from stipule.rollouts.pruning import Pruning
from stipule.tasks.arithmetic import Arithmetic
from stipule.tasks.countdown import Countdown
from stipule.tasks.custom import Custom
from stipule.tasks.gsm8k import Gsm8k
from stipule.tasks.math import Math
from stipule.tasks.sudoku import Sudoku
from stipule.training.alarms import Alarms
from stipule.training.tracking import Tracker

# The unions that `kind:` picks from. A new member is one name here.
AnyTask = Sudoku | Countdown | Gsm8k | Math | Arithmetic | Custom
AnyEstimator = Elbo | OneStep | UniGrpo | Spg | Coupled | Trajectory | Autoregressive
AnyCredit = GroupRelative | LeaveOneOut | Exponential
AnyObjective = Grpo | SequenceRatio | PolicyGradient


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with a warm-up and then a constant rate."""

    learning_rate: float = 3e-6  # table 8
    beta1: float = 0.9  # table 8
    beta2: float = 0.99  # table 8
    weight_decay: float = 0.1  # table 8
    max_norm: float = 0.2  # gradient clipping (d1's and SPG's; the paper is silent)
    warmup: int = 0  # RL steps in which the rate rises from 0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.max_norm <= 0:
            raise RecipeError(
                f"optimizer has learning_rate {self.learning_rate} and max_norm {self.max_norm}; both must be above 0"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.weight_decay >= 0 and self.warmup >= 0):
            raise RecipeError(
                f"optimizer has betas {self.beta1}, {self.beta2}, weight_decay {self.weight_decay}, warmup "
                f"{self.warmup}; "
                "betas must lie in [0, 1), the others be 0 or more"
            )

    def rate(self, step: int) -> float:
        """The learning rate of an RL step (from 0)."""
        return self.learning_rate * min(1.0, (step + 1) / (self.warmup + 1))


@dataclass(frozen=True, kw_only=True)
class Training:
    """How much is done, in what portions, and what is kept."""

    steps: int = 1000  # RL steps
    problems: int = 2  # a step, over all processes; table 8: batch 6 x accumulation 2 / group 6 on each GPU
    group: int = 6  # G, responses per problem (table 8)
    updates: int = 4  # mu, inner updates a step (table 8)
    rollout_rows: int = 64  # responses denoised at once in a process; as one ends, the next begins
    score_rows: int = 6  # responses scored at once, each with its K views; smaller needs less memory, changes no result
    seed: int = 42
    save_every: int = 100  # RL steps between checkpoints
    keep: int = 2  # checkpoints kept
    rollouts_every: int = 10  # RL steps between saved rollouts; 0: never
    evaluate_every: int = 0  # RL steps between greedy evaluations on held-out problems; 0: never
    evaluate_problems: int = 128
    audit_every: int = 0  # RL steps between rollouts of the step's problems without pruning; 0: never
    # RL steps between exact rollouts of the step's problems, where sampler.parallel or sampler.cache is set; 0: never
    agreement_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "problems", "updates", "rollout_rows", "score_rows", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise RecipeError(f"training.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("seed", "rollouts_every", "evaluate_every", "evaluate_problems", "audit_every", "agreement_every"):
            if getattr(self, name) < 0:
                raise RecipeError(f"training.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.group < 2:
            raise RecipeError(
                f"training.group is {self.group}; an advantage compares the responses of a group, so it "
                "needs 2 or more; try 6"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One RL run: sampler x pruning x estimator x credit x objective are independent of one another."""

    task: AnyTask
    model: ModelChoice = field(default_factory=ModelChoice)
    sampler: BlockDenoiser = field(default_factory=BlockDenoiser)
    pruning: Pruning = field(default_factory=Pruning)
    estimator: AnyEstimator = field(default_factory=Elbo)
    credit: AnyCredit = field(default_factory=GroupRelative)
    objective: AnyObjective = field(default_factory=Grpo)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    alarms: Alarms = field(default_factory=Alarms)
    tracking: tuple[Tracker, ...] = ()  # where metrics.jsonl is mirrored

    def __post_init__(self) -> None:
        if self.sampler.cache is not None and self.model.attention == "flash_attention_2":
            raise RecipeError(
                "sampler.cache is set with model.attention flash_attention_2, which cannot leave out the padding of "
                "remembered keys; set model.attention=sdpa, or leave sampler.cache out"
            )
        if isinstance(self.estimator, Spg):
            if not self.credit.signed:
                raise RecipeError(
                    f"estimator spg needs advantages of both signs, but credit {self.credit.kind} with positive: true "
                    "gives none below 0; set credit.positive=false, or credit.kind=group_relative"
                )
            if self.objective.kl > 0:
                raise RecipeError(
                    f"objective.kl is {self.objective.kl} with estimator spg, whose score is another bound for every "
                    "sign of the advantage: the distance to the reference would depend on the reward; set "
                    "objective.kl=0, or estimator.kind=elbo"
                )
            if self.estimator.masks == "block" and self.sampler.length % self.estimator.block:
                raise RecipeError(
                    f"estimator.block is {self.estimator.block}; it must divide sampler.length, which is "
                    f"{self.sampler.length}; try {min(self.sampler.block, self.sampler.length)}"
                )
