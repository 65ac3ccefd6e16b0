"""The protocol of an objective: log-probabilities and advantages in, a loss out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from stipule.types import Loss, LossInputs


@runtime_checkable
class Objective(Protocol):
    """A loss. It sees no masks, rewards or models."""

    @property
    def beta(self) -> float:
        """The weight of the KL term. At 0 no reference policy is loaded or computed."""
        ...

    @property
    def uses_old_policy(self) -> bool:
        """Whether `old_logps` are read. If not, the old policy is not computed."""
        ...

    @property
    def averages_tokens(self) -> bool:
        """Whether the loss is a mean over all tokens: micro-batches then count by their tokens, not by their rows."""
        ...

    def __call__(self, inputs: LossInputs) -> Loss: ...
