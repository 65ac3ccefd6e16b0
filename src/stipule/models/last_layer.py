"""Computes the last layer only at the positions whose output is read.

Only the LM head reads the last hidden states, and only at a few positions: those of a block in a rollout, those that
are masked in a likelihood. Attention needs the last layer's keys and values everywhere; its queries, its output matrix
and its MLP act on each position alone. They are about five sixths of the layer: 5 / (6 layers) of the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn


def last_layer_only_at(
    indices: Int[Tensor, " M"], total: int, base_model: nn.Module, module_names: Sequence[str]
) -> AbstractContextManager[None]:
    """Inside, the last layer is computed only at these of `total` indices.

    It is computed everywhere if the family names no modules, or if gradient checkpointing will compute it once more.
    """
    layer = getattr(base_model, "layers", [None])[-1]  # type: ignore[index]
    recomputed = base_model.training and getattr(layer, "gradient_checkpointing", False)
    if recomputed or not module_names or not 0 < len(indices) < total:
        return nullcontext()
    return compute_only_at(unique_indices(indices, total), layer, module_names)


@contextmanager
def compute_only_at(indices: Int[Tensor, " M"], layer: nn.Module, module_names: Sequence[str]) -> Iterator[None]:
    """Inside, these modules of a layer compute the given indices of the flattened N x T, and return 0 elsewhere.

    Each module must map N x T x D to N x T x E position by position. An index of N T or more is ignored.
    """
    hooks = []
    shape = (0, 0)

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal shape
        shape = args[0].shape[:2]
        flat = args[0].flatten(0, 1)
        valid = indices.to(flat.device).clamp(max=len(flat) - 1)
        return (flat.index_select(0, valid)[None], *args[1:])

    def scatter(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        rows, width = shape
        full = output.new_zeros(rows * width + 1, output.shape[2])  # the last row receives ignored indices
        return full.index_copy(0, indices.to(output.device), output[0])[:-1].unflatten(0, (rows, width))

    for module in map(layer.get_submodule, module_names):
        hooks += [module.register_forward_pre_hook(gather), module.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def unique_indices(indices: Int[Tensor, " M"], total: int) -> Int[Tensor, " M"]:
    """The indices sorted and without repetition, padded with `total`.

    A GPU is not waited for: `selected[indices] = True` would copy the True to it.
    """
    selected = torch.zeros(total, dtype=torch.bool, device=indices.device)
    selected.index_fill_(0, indices, True)
    return torch.nonzero_static(selected, size=len(indices), fill_value=total)[:, 0]
