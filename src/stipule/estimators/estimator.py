"""What a likelihood estimator is: what to hide, and how to add it up."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from stipule.types import Responses, Views


@runtime_checkable
class Estimator(Protocol):
    """Two pure functions. Noise is data: what `draw` has hidden is all that ties the scores of policies together."""

    def views(self, length: int, calls: int) -> int:
        """K: views per response, at most, of responses of this length made in this many model calls."""
        ...

    def draw(self, responses: Responses, updates: int, generator: torch.Generator) -> list[Views]:
        """The views of each inner update. Cannot see a reward."""
        ...

    def read(self, logp: Float[Tensor, "K B L"], views: Views, advantage: Float[Tensor, " B"]) -> Float[Tensor, "B L"]:
        """The score of every token from the log-probabilities of the hidden ones; 0 where no view has weight."""
        ...
