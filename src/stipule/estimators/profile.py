"""How surprising a hidden token is by the share of tokens that are hidden with it, and counts drawn by that.

A view that hides k tokens adds S/(K k q(k)), S the surprise of what it hides: the part of eq. 14 that comes from the
level vanishes where q(k) is proportional to sqrt(E[S^2 | k]) / k, the surprise per hidden token. A trained model finds
a token easy while most others are seen; one with random weights does not. So the profile is measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stipule.types import Views

KNOTS = 9  # shares of hidden tokens at which the profile is kept: 0, 1/8 ... 1
# Of its mean, added to a profile everywhere: no view weighs more than 3.5 times what it would if all counts were drawn
# alike. What is rare to be drawn is where a failing response surprises most.
DEFENCE = 0.4
MEMORY = 0.9  # what a step's observations count for one RL step later


def profiled_counts(
    u: Float[Tensor, "K B"], profile: Sequence[float], most: Int[Tensor, " B"], length: int
) -> tuple[Int[Tensor, "K B"], Float[Tensor, "K B"]]:
    """k ~ q(k) over 1 .. n by inverse CDF, with q(k): importance sampling of the count.

    q(k) is in proportion to the profile at the share k/n, linear between values at equal distances over [0, 1], plus
    `DEFENCE` of their mean. A constant profile draws every count alike.
    """
    values = torch.tensor(profile, dtype=torch.float64)
    n = most.clamp(min=1)[:, None]
    k = torch.arange(1, length + 1, dtype=torch.float64)
    weights = (between(values, (k / n).clamp(max=1)) + DEFENCE * values.mean()) * (k <= n)
    weights = weights.float().double()  # sums of rounded numbers are exact, whatever adds them up
    q = weights / weights.sum(1, keepdim=True)
    cumulative = q.cumsum(1)
    index = torch.searchsorted(cumulative, (u.T * cumulative[:, -1:]).contiguous(), right=True)
    count = (index + 1).minimum(n)
    return count.T, q.gather(1, count - 1).T


def between(values: Float[Tensor, " J"], share: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """The values at equal distances over [0, 1], joined by straight lines."""
    place = share * (len(values) - 1)
    below = place.long().clamp(max=len(values) - 2)
    part = place - below
    return values[below] * (1 - part) + values[below + 1] * part


@dataclass
class Surprise:
    """What a run has seen of its model's profile: at each knot, the weight of the views near it and of S^2/k^2."""

    weight: list[float] = field(default_factory=lambda: [0.0] * KNOTS)
    square: list[float] = field(default_factory=lambda: [0.0] * KNOTS)

    def profile(self) -> tuple[float, ...] | None:
        """sqrt(E[S^2/k^2]) at the knots; None while nothing has been seen. A knot without views has the mean."""
        seen = sum(self.weight)
        if seen == 0 or sum(self.square) == 0:
            return None
        mean = sum(self.square) / seen
        return tuple((s / w if w > 0 else mean) ** 0.5 for w, s in zip(self.weight, self.square, strict=True))

    def remember(self, seen: Float[Tensor, "2 J"]) -> None:
        """Adds what one RL step has seen; older steps fade, since the model changes."""
        new_weight, new_square = seen.tolist()
        self.weight = [MEMORY * old + new for old, new in zip(self.weight, new_weight, strict=True)]
        self.square = [MEMORY * old + new for old, new in zip(self.square, new_square, strict=True)]


def surprise(logp: Float[Tensor, "K B L"], views: Views) -> Float[Tensor, "2 J"]:
    """Weight and S^2/k^2 of these views, shared out to the two knots next to each view's share of hidden tokens."""
    k, n = views.hidden.sum(2), views.counted.sum(1).clamp(min=1)
    square = ((logp * views.hidden).sum(2) / k.clamp(min=1)).double().square()
    place = (k / n).double().clamp(max=1) * (KNOTS - 1)
    knot = torch.arange(KNOTS, device=place.device)
    near = (1 - (place[..., None] - knot).abs()).clamp(min=0) * (k > 0)[..., None]
    return torch.stack([near.sum((0, 1)), (near * square[..., None]).sum((0, 1))])
