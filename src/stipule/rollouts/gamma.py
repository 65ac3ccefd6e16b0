"""How much of gamma is used: all of it, less and less over the run, or by how hard a problem was found to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stipule.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """From the full ratio in the first RL step to `to`, in a straight line; then `to`."""

    kind: Literal["annealed"] = "annealed"
    to: float = 0.0  # share of fixed tokens at the end, at most the ratio
    steps: int = 1000  # RL steps until then

    def __post_init__(self) -> None:
        if not 0 <= self.to < 1:
            raise RecipeError(
                f"pruning.spatial.vary.to is {self.to}; it is a share of fixed tokens and must lie in [0, 1); try 0"
            )
        if self.steps < 1:
            raise RecipeError(f"pruning.spatial.vary.steps is {self.steps}; it must be 1 or more RL steps")

    def at(self, ratio: float, step: int, solved: float | None) -> float:
        """gamma at an RL step (from 0)."""
        return ratio + (self.to - ratio) * min(1.0, step / self.steps)

    def least(self, ratio: float) -> float:
        """The smallest gamma of a run that is long enough."""
        return self.to


@dataclass(frozen=True, kw_only=True)
class ByDifficulty:
    """In proportion to the share of the group that was right (`easy`) or wrong (`hard`) at the problem's last visit.

    At its first visit a problem gets the full ratio.
    """

    kind: Literal["by_difficulty"] = "by_difficulty"
    # easy: what is solved anyway is cheap, what is not is explored freely. hard: anchors help where nothing is found.
    prune: Literal["easy", "hard"] = "easy"

    def at(self, ratio: float, step: int, solved: float | None) -> float:
        """gamma of a problem of whose group this share was right when it was last seen; None: never seen."""
        if solved is None:
            return ratio
        return ratio * (solved if self.prune == "easy" else 1 - solved)

    def least(self, ratio: float) -> float:
        """The smallest gamma that a problem can get."""
        return 0.0
