"""Advantages from rewards, inside groups of G adjacent rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from stipule.errors import RecipeError


@runtime_checkable
class AdvantageFunction(Protocol):
    """Rewards -> advantages."""

    @property
    def has_both_signs(self) -> bool:
        """Whether advantages can be negative."""
        ...

    def __call__(self, rewards: Float[Tensor, " B"], num_generations: int) -> Float[Tensor, " B"]: ...


def center_rewards(rewards: Float[Tensor, " B"], num_generations: int) -> Float[Tensor, "Q G"]:
    """R - mean of the group. Exactly 0 where all rewards of a group are equal, so rounding is no advantage."""
    grouped = rewards.view(-1, num_generations)
    differs = (grouped.amax(1) > grouped.amin(1))[:, None]
    return (grouped - grouped.mean(1, keepdim=True)) * differs


@dataclass(frozen=True, kw_only=True)
class GroupRelative:
    """A_i = (R_i - mean) / std inside the group, and exactly 0 where all rewards are equal (section 2.1).

    The standard deviation is that of the group itself (population form). `scale_rewards: false` does not divide by it,
    as the code of d1 and SPG does (docs/decisions.md, row 13). STP's authors divide by the unbiased deviation + 1e-4,
    as TRL does: `std: sample, std_epsilon: 1.0e-4`.
    """

    kind: Literal["group_relative"] = "group_relative"
    scale_rewards: bool = True  # divide by the group's standard deviation
    std: Literal["population", "sample"] = "population"  # divides the squares by G, or by G - 1 (unbiased)
    std_epsilon: float = 0.0  # added to the standard deviation

    has_both_signs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.std_epsilon < 0:
            raise RecipeError(
                f"advantage.std_epsilon is {self.std_epsilon}; it is added to the standard deviation and must be 0 or "
                "more; try 1e-4"
            )

    def __call__(self, rewards: Float[Tensor, " B"], num_generations: int) -> Float[Tensor, " B"]:
        advantages = center_rewards(rewards, num_generations)
        if self.scale_rewards:
            variance = advantages.square().mean(1, keepdim=True)
            if self.std == "sample":
                variance = variance * (num_generations / (num_generations - 1))
            deviation = variance.sqrt()
            advantages = advantages / (deviation.where(deviation > 0, 1.0) + self.std_epsilon)
        return advantages.flatten()


@dataclass(frozen=True, kw_only=True)
class Rloo:
    """A_i = R_i - mean of the others = G/(G-1) (R_i - mean): an unbiased baseline (Kool et al. 2019, RLOO).

    DiffuCoder and ESPO use it.
    """

    kind: Literal["rloo"] = "rloo"

    has_both_signs: ClassVar[bool] = True

    def __call__(self, rewards: Float[Tensor, " B"], num_generations: int) -> Float[Tensor, " B"]:
        return (center_rewards(rewards, num_generations) * (num_generations / (num_generations - 1))).flatten()


@dataclass(frozen=True, kw_only=True)
class Wd1Weights:
    """A_i = G (softmax(a / T)_i - softmax(-a / T)_i), a = R - mean, softmax over the group (Tang et al. 2025, wd1).

    These are wd1's weights times G, so that a mean over rows equals wd1's sum over the group. Equal rewards give
    exactly 0. The published code takes the softmax over the micro-batch, which is the group only if the micro-batch
    holds one group. `positive_only: true` keeps the first term only (wd1's `_psr`): every response becomes more likely,
    and equal rewards do not cancel.
    """

    kind: Literal["wd1"] = "wd1"
    temperature: float = 1.0  # T; the published code has 1
    positive_only: bool = False

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise RecipeError(
                f"advantage.temperature is {self.temperature}; it divides the advantage and must be above 0; try 1"
            )

    @property
    def has_both_signs(self) -> bool:
        return not self.positive_only

    def __call__(self, rewards: Float[Tensor, " B"], num_generations: int) -> Float[Tensor, " B"]:
        centered = center_rewards(rewards, num_generations)
        weights = self._softmax(centered)
        if not self.positive_only:
            weights = weights - self._softmax(-centered)
        return (num_generations * weights).flatten()

    def _softmax(self, centered: Float[Tensor, "Q G"]) -> Float[Tensor, "Q G"]:
        # The largest becomes 0 before the division, so that a small temperature gives -inf and never inf - inf.
        return ((centered - centered.amax(1, keepdim=True)) / self.temperature).softmax(1)
