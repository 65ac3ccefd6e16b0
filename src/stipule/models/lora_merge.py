"""Adds LoRA adapters into the matrices they adapt while nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stipule.models.masked_policy import MaskedPolicy


@contextmanager
def merged_adapters(policy: MaskedPolicy) -> Iterator[None]:
    """Inside, W + (alpha/r) B A is computed once, not W x + (alpha/r) B (A x) in every forward pass.

    Results are the same up to rounding. The plain matrices are kept and restored bit for bit. Only float32 weights that
    compute in float32 are merged: a bfloat16 sum would lose most of a small adapter, and rollouts would come from
    another policy than the trained one. Sharded weights are not merged. It needs the memory of the adapted matrices
    a second time.
    """
    layers = _mergeable_layers(policy)
    if not layers:
        yield
        return
    network: Any = policy.model
    originals = []
    with network.disable_adapter():
        try:
            with torch.no_grad():
                for layer in layers:
                    weight = layer.get_base_layer().weight
                    delta = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
                    originals.append((weight, weight.data))
                    weight.data = weight.data + delta
            yield
        finally:
            for weight, original in originals:
                weight.data = original


def _mergeable_layers(policy: MaskedPolicy) -> list[Any]:
    if policy.sharded or policy.autocast or not hasattr(policy.model, "peft_config"):
        return []
    from peft.tuners.lora import LoraLayer

    layers = [module for module in policy.model.modules() if isinstance(module, LoraLayer)]
    # Adapters on stacked experts adapt a bare parameter: their base layer has no single matrix to add to.
    weights = [getattr(layer.get_base_layer(), "weight", None) for layer in layers]
    return layers if all(w is not None and w.dtype == torch.float32 for w in weights) else []
