"""How much of gamma is used: constant, decreasing over the run, or by the difficulty of a problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from stipule.errors import RecipeError


@runtime_checkable
class AnchorRatioSchedule(Protocol):
    """How much of gamma is used: `pruning.spatial.schedule`."""

    @property
    def uses_accuracy(self) -> bool:
        """Whether `ratio_at` reads the accuracy, which the run then stores for every problem."""
        ...

    def ratio_at(self, ratio: float, step: int, accuracy: float | None) -> float:
        """gamma, at most `ratio`, of a problem at an RL step (from 0); None: the problem was never sampled."""
        ...

    def min_ratio(self, ratio: float) -> float:
        """The smallest gamma that a problem can get."""
        ...


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """Linear from the full ratio in the first RL step to `final_ratio`, then constant."""

    kind: Literal["annealed"] = "annealed"
    final_ratio: float = 0.0  # fraction of fixed tokens at the end, below pruning.spatial.ratio
    steps: int = 1000  # RL steps until then

    uses_accuracy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.final_ratio < 1:
            raise RecipeError(
                f"pruning.spatial.schedule.final_ratio is {self.final_ratio}; it is a fraction of fixed tokens and "
                "must lie in [0, 1); try 0"
            )
        if self.steps < 1:
            raise RecipeError(f"pruning.spatial.schedule.steps is {self.steps}; it must be 1 or more RL steps")

    def ratio_at(self, ratio: float, step: int, accuracy: float | None) -> float:
        """gamma at an RL step (from 0)."""
        return ratio + (self.final_ratio - ratio) * min(1.0, step / self.steps)

    def min_ratio(self, ratio: float) -> float:
        """The smallest gamma of a run that is long enough."""
        return self.final_ratio


@dataclass(frozen=True, kw_only=True)
class ByDifficulty:
    """Proportional to the accuracy of the problem's group in the previous epoch (`easy`) or to its error (`hard`).

    In the first epoch a problem gets the full ratio.
    """

    kind: Literal["by_difficulty"] = "by_difficulty"
    # easy: problems that are solved anyway cost less, the others are explored freely. hard: anchors help where no
    # response is correct.
    prune: Literal["easy", "hard"] = "easy"

    uses_accuracy: ClassVar[bool] = True

    def ratio_at(self, ratio: float, step: int, accuracy: float | None) -> float:
        """gamma of a problem whose group had this accuracy when it was last sampled; None: never sampled."""
        if accuracy is None:
            return ratio
        return ratio * (accuracy if self.prune == "easy" else 1 - accuracy)

    def min_ratio(self, ratio: float) -> float:
        """The smallest gamma that a problem can get."""
        return 0.0
