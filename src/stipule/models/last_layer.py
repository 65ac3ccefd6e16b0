"""The last layer, computed only where somebody looks: the same states there for less.

Only the LM head reads the last hidden states, and it is asked at few places: those of a block in a rollout, those that
are hidden in a score. Attention needs the last layer's keys and values everywhere; its queries, its output matrix and
its MLP act on each place alone. They are about five sixths of the layer, so a share of 5 / (6 layers) of the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn


@contextmanager
def compute_only_at(places: Int[Tensor, " M"], layer: nn.Module, parts: Sequence[str]) -> Iterator[None]:
    """Within, these parts of a layer compute the given places of the flattened N x T, and hold 0 at all others.

    Each part must map N x T x D to N x T x E place by place. A place at or beyond N T is nowhere.
    """
    hooks = []
    shape = (0, 0)

    def gather(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal shape
        shape = given[0].shape[:2]
        flat = given[0].flatten(0, 1)
        inside = places.to(flat.device).clamp(max=len(flat) - 1)
        return (flat.index_select(0, inside)[None], *given[1:])

    def scatter(_: nn.Module, given: tuple[Any, ...], found: Tensor) -> Tensor:
        rows, width = shape
        whole = found.new_zeros(rows * width + 1, found.shape[2])  # the last row is nowhere
        return whole.index_copy(0, places.to(found.device), found[0])[:-1].unflatten(0, (rows, width))

    for part in map(layer.get_submodule, parts):
        hooks += [part.register_forward_pre_hook(gather), part.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def unique_indices(places: Int[Tensor, " M"], total: int) -> Int[Tensor, " M"]:
    """The places without repetition, filled up with `total`; no device is waited for."""
    asked = torch.zeros(total, dtype=torch.bool, device=places.device)
    asked[places] = True
    return torch.nonzero_static(asked, size=len(places), fill_value=total)[:, 0]
