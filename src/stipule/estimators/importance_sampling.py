"""Mask counts drawn in proportion to the loss that earlier steps had at each mask ratio.

A sample with k masked tokens adds S/(K k q(k)), with S the loss of its masked tokens. The part of eq. 14 that comes
from the mask ratio vanishes if q(k) is proportional to sqrt(E[S^2 | k]) / k, the loss per masked token. A trained model
predicts a token easily while most others are visible; a model with random weights does not. So the loss is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stipule.types import MaskSamples

NUM_KNOTS = 9  # mask ratios at which the loss is kept: 0, 1/8 ... 1
# This fraction of the mean is added everywhere (defensive importance sampling): no sample weighs more than 3.5 times
# its weight under uniform counts. Rare counts are where failing responses have their largest losses.
DEFENSIVE_FRACTION = 0.4
DECAY = 0.9  # weight of a step's observations one RL step later


def importance_sampled_counts(
    u: Float[Tensor, "K B"], importance: Sequence[float], high: Int[Tensor, " B"], length: int
) -> tuple[Int[Tensor, "K B"], Float[Tensor, "K B"]]:
    """k ~ q(k) over 1 .. n by inverse CDF, and q(k): importance sampling of the mask count.

    q(k) is proportional to the importance at the mask ratio k/n (interpolated between equally spaced values over
    [0, 1]) plus `DEFENSIVE_FRACTION` of its mean. A constant importance draws every count equally often.
    """
    values = torch.tensor(importance, dtype=torch.float64)
    n = high.clamp(min=1)[:, None]
    k = torch.arange(1, length + 1, dtype=torch.float64)
    weights = (interpolate(values, (k / n).clamp(max=1)) + DEFENSIVE_FRACTION * values.mean()) * (k <= n)
    weights = weights.float().double()  # sums of rounded numbers are exact in every order of summation
    q = weights / weights.sum(1, keepdim=True)
    cumulative = q.cumsum(1)
    index = torch.searchsorted(cumulative, (u.T * cumulative[:, -1:]).contiguous(), right=True)
    count = (index + 1).minimum(n)
    return count.T, q.gather(1, count - 1).T


def interpolate(values: Float[Tensor, " J"], ratio: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Linear interpolation between equally spaced values over [0, 1]."""
    position = ratio * (len(values) - 1)
    below = position.long().clamp(max=len(values) - 2)
    remainder = position - below
    return values[below] * (1 - remainder) + values[below + 1] * remainder


@dataclass
class LossHistory:
    """Running sums of the losses at each mask ratio: at each knot, the number of samples near it and of S^2/k^2."""

    num_observed: list[float] = field(default_factory=lambda: [0.0] * NUM_KNOTS)
    sum_squares: list[float] = field(default_factory=lambda: [0.0] * NUM_KNOTS)

    def importance(self) -> tuple[float, ...] | None:
        """sqrt(E[S^2/k^2]) at the knots; None before the first observation. A knot without samples has the mean."""
        total = sum(self.num_observed)
        if total == 0 or sum(self.sum_squares) == 0:
            return None
        mean = sum(self.sum_squares) / total
        return tuple(
            (s / n if n > 0 else mean) ** 0.5 for n, s in zip(self.num_observed, self.sum_squares, strict=True)
        )

    @staticmethod
    def no_observation(device: torch.device) -> Float[Tensor, "2 J"]:
        """The observations of a process without mask samples."""
        return torch.zeros(2, NUM_KNOTS, dtype=torch.float64, device=device)

    def update(self, observed: Float[Tensor, "2 J"]) -> None:
        """Adds the observations of one RL step. Older steps lose weight, because the model changes."""
        numbers, squares = observed.tolist()
        self.num_observed = [DECAY * old + new for old, new in zip(self.num_observed, numbers, strict=True)]
        self.sum_squares = [DECAY * old + new for old, new in zip(self.sum_squares, squares, strict=True)]


def loss_by_mask_ratio(token_logps: Float[Tensor, "K B L"], masks: MaskSamples) -> Float[Tensor, "2 J"]:
    """The number of samples and their S^2/k^2, split between the two knots next to each sample's mask ratio."""
    k, n = masks.masked.sum(2), masks.normalizer_mask.sum(1).clamp(min=1)
    square = ((token_logps * masks.masked).sum(2) / k.clamp(min=1)).double().square()
    position = (k / n).double().clamp(max=1) * (NUM_KNOTS - 1)
    knot = torch.arange(NUM_KNOTS, device=position.device)
    near = (1 - (position[..., None] - knot).abs()).clamp(min=0) * (k > 0)[..., None]
    return torch.stack([near.sum((0, 1)), (near * square[..., None]).sum((0, 1))])
