"""What an objective is: scores in, loss out; no masks, views, rewards or models."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from stipule.types import Loss


@runtime_checkable
class Objective(Protocol):
    """Scores -> loss."""

    @property
    def kl(self) -> float:
        """The weight of the reference: at 0 none is needed, loaded or scored."""
        ...

    @property
    def compares(self) -> bool:
        """Whether `old` is read at all; if not, the old policy is never scored."""
        ...

    def __call__(
        self,
        new: Float[Tensor, "B L"],
        old: Float[Tensor, "B L"],
        ref: Float[Tensor, "B L"] | None,
        advantage: Float[Tensor, " B"],
        counted: Bool[Tensor, "B L"],
    ) -> Loss: ...
