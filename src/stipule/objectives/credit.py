"""From rewards to advantages, inside groups of G adjacent rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Credit(Protocol):
    """Reward -> advantage."""

    def __call__(self, reward: Float[Tensor, " B"], group: int) -> Float[Tensor, " B"]: ...


@dataclass(frozen=True, kw_only=True)
class GroupRelative:
    """A_i = (R_i - mean) / std inside the group, and exactly 0 where all rewards are equal (section 2.1).

    The standard deviation is the group's own (population form). `scale: false` leaves it out, as the code of d1 and
    SPG does (docs/decisions.md 3.5, row 13).
    """

    kind: Literal["group_relative"] = "group_relative"
    scale: bool = True

    def __call__(self, reward: Float[Tensor, " B"], group: int) -> Float[Tensor, " B"]:
        grouped = reward.view(-1, group)
        centred = grouped - grouped.mean(1, keepdim=True)
        # Rounding of the mean must not become an advantage: a group without spread has none.
        spread = (grouped.amax(1) > grouped.amin(1))[:, None]
        if self.scale:
            centred = centred / grouped.std(1, keepdim=True, correction=0).where(spread, 1.0)
        return (centred * spread).flatten()
