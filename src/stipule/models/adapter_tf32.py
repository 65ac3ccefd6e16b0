"""Multiplies the float32 matrices of LoRA in TF32 where the base is less precise anyway.

peft keeps adapters in float32 on a base in bfloat16 or 4 bits. Without TF32 a GPU computes their products without its
tensor cores; by data-sheet rates these few operations take about as long as all of the base's. TF32 is allowed for
these products only, never for all: rotary embeddings may compute their angles as a float32 product, and TF32 would
round them to 11 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def allow_tf32_in_adapters(model: nn.Module) -> None:
    """Changes the A and B matrices of every adapter; nothing without adapters. On a CPU the results are the same."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for matrix in (*layer.lora_A.values(), *layer.lora_B.values()):
                if type(matrix) is nn.Linear and matrix.bias is None and matrix.weight.dtype == torch.float32:
                    matrix.__class__ = Tf32Linear


class Tf32Linear(nn.Linear):
    """A linear map without bias that allows TF32 in its three products."""

    def forward(self, input: Tensor) -> Tensor:
        return _Tf32Product.apply(input, self.weight)


class _Tf32Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        with _tf32():
            return nn.functional.linear(inputs, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        inputs, weight = ctx.saved_tensors
        with _tf32():
            of_inputs = gradient @ weight if ctx.needs_input_grad[0] else None
            flat = gradient.flatten(0, -2)
            of_weight = flat.mT @ inputs.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return of_inputs, of_weight


@contextmanager
def _tf32() -> Iterator[None]:
    """Inside, float32 products on a GPU are computed in TF32. The setting is read when a product starts."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
