"""Adapters added into the matrices they adapt, for as long as nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stipule.models.masked_policy import MaskedPolicy


@contextmanager
def merged_adapters(policy: MaskedPolicy) -> Iterator[None]:
    """Within, W + (alpha/r) B A is computed once, not W x + (alpha/r) B (A x) in every call: the same up to rounding.

    The plain matrices are kept beside and put back, bit for bit. Only float32 weights that compute in float32 are
    merged: a bfloat16 sum would lose most of a small adapter, and rollouts would follow another policy than is trained.
    Sharded weights are left as they are. It takes the memory of the adapted matrices once more.
    """
    layers = _adapted(policy)
    if not layers:
        yield
        return
    network: Any = policy.model
    kept = []
    with network.disable_adapter():
        try:
            with torch.no_grad():
                for layer in layers:
                    weight = layer.get_base_layer().weight
                    change = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
                    kept.append((weight, weight.data))
                    weight.data = weight.data + change
            yield
        finally:
            for weight, plain in kept:
                weight.data = plain


def _adapted(policy: MaskedPolicy) -> list[Any]:
    if policy.sharded or policy.autocast or not hasattr(policy.model, "peft_config"):
        return []
    from peft.tuners.lora import LoraLayer

    layers = [module for module in policy.model.modules() if isinstance(module, LoraLayer)]
    # Adapters on stacked experts sit on a bare parameter: their base has no one matrix to add to.
    weights = [getattr(layer.get_base_layer(), "weight", None) for layer in layers]
    return layers if all(w is not None and w.dtype == torch.float32 for w in weights) else []
