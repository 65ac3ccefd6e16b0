"""Muon (Jordan et al. 2024) in the precision of the parameters, all matrices of one shape at once.

torch.optim.Muon always iterates in bfloat16. A CPU without bfloat16 units emulates that, which takes more than half of
a pre-training step of a tiny model (docs/speed.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the published coefficients: steepest at 0, so that five iterations suffice
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made nearly orthogonal; for 2-D parameters only. Every one of them needs a gradient."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            updates = defaultdict(list)
            for matrix in group["params"]:
                updates[matrix.shape].append((matrix, self._momentum_update(matrix, group)))
            for (rows, columns), pairs in updates.items():
                orthogonal = nearly_orthogonal(torch.stack([update for _, update in pairs]))
                learning_rate = group["lr"] * max(1, rows / columns) ** 0.5
                for (matrix, _), update in zip(pairs, orthogonal, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=learning_rate)

    def _momentum_update(self, matrix: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov's form: the gradient, moved towards its running mean."""
        state = self.state[matrix]
        assert matrix.grad is not None, "every matrix of the network has a gradient"
        if not state:
            state["mean"] = torch.zeros_like(matrix)
        state["mean"].lerp_(matrix.grad, 1 - group["momentum"])
        return matrix.grad.lerp(state["mean"], group["momentum"])


def nearly_orthogonal(updates: Float[Tensor, "M R C"]) -> Float[Tensor, "M R C"]:
    """U S V^T of every matrix with all singular values brought near 1, by Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    tall = updates.shape[1] > updates.shape[2]
    x = updates.mT if tall else updates
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # so the largest singular value is at most 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
