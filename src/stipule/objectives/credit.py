"""From rewards to advantages, inside groups of G adjacent rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from stipule.errors import RecipeError


@runtime_checkable
class Credit(Protocol):
    """Reward -> advantage."""

    @property
    def signed(self) -> bool:
        """Whether a response can get less than nothing."""
        ...

    def __call__(self, reward: Float[Tensor, " B"], group: int) -> Float[Tensor, " B"]: ...


def centred(reward: Float[Tensor, " B"], group: int) -> Float[Tensor, "Q G"]:
    """R - mean of the group, and exactly 0 where all rewards are equal: rounding must not become an advantage."""
    grouped = reward.view(-1, group)
    spread = (grouped.amax(1) > grouped.amin(1))[:, None]
    return (grouped - grouped.mean(1, keepdim=True)) * spread


@dataclass(frozen=True, kw_only=True)
class GroupRelative:
    """A_i = (R_i - mean) / std inside the group, and exactly 0 where all rewards are equal (section 2.1).

    The standard deviation is the group's own (population form). `scale: false` leaves it out (centred), as the code
    of d1 and SPG does (docs/decisions.md, row 13).
    """

    kind: Literal["group_relative"] = "group_relative"
    scale: bool = True

    signed: ClassVar[bool] = True

    def __call__(self, reward: Float[Tensor, " B"], group: int) -> Float[Tensor, " B"]:
        advantage = centred(reward, group)
        if self.scale:
            deviation = advantage.square().mean(1, keepdim=True).sqrt()
            advantage = advantage / deviation.where(deviation > 0, 1.0)
        return advantage.flatten()


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """A_i = R_i - mean of the others = G/(G-1) (R_i - mean): an unbiased baseline (Kool et al. 2019).

    DiffuCoder and ESPO use it.
    """

    kind: Literal["leave_one_out"] = "leave_one_out"

    signed: ClassVar[bool] = True

    def __call__(self, reward: Float[Tensor, " B"], group: int) -> Float[Tensor, " B"]:
        return (centred(reward, group) * (group / (group - 1))).flatten()


@dataclass(frozen=True, kw_only=True)
class Exponential:
    """A_i = G (softmax(a / T)_i - softmax(-a / T)_i), a = R - mean, the softmax over the group (Tang et al. 2025, wd1).

    The weights of wd1 times G, so that a mean over rows is wd1's sum over the group; equal rewards give exactly 0.
    The published code takes the softmax over the micro-batch, which is the group only where that holds just one.
    `positive: true` keeps the first term alone (wd1's `_psr`): every response is made likelier, and equal rewards
    do not cancel.
    """

    kind: Literal["exponential"] = "exponential"
    temperature: float = 1.0  # T; the published code has 1
    positive: bool = False

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise RecipeError(
                f"credit.temperature is {self.temperature}; it divides the advantage and must be above 0; try 1"
            )

    @property
    def signed(self) -> bool:
        return not self.positive

    def __call__(self, reward: Float[Tensor, " B"], group: int) -> Float[Tensor, " B"]:
        advantage = centred(reward, group) / self.temperature
        weight = advantage.softmax(1)
        if not self.positive:
            weight = weight - (-advantage).softmax(1)
        return (group * weight).flatten()
