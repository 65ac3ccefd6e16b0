"""Error and speed of an adapter's product in TF32 against strict float32, on a GPU: python -m benchmarks.adapter_tf32

The sizes are those of LLaDA-8B: 16,384 tokens of width 4,096, LoRA of rank 128.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stipule.models.adapter_tf32 import Tf32Linear

TOKENS, WIDTH, RANK, REPEATS = 16_384, 4_096, 128, 50


def milliseconds(function: Callable[[], object]) -> float:
    """Of one call, after one that is not counted."""
    function()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(REPEATS):
        function()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started) / REPEATS


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("TF32 is a mode of NVIDIA GPUs; there is none here")
    x = torch.randn(TOKENS, WIDTH, device="cuda", requires_grad=True)
    strict = nn.Linear(WIDTH, RANK, bias=False, device="cuda")
    tf32 = Tf32Linear(WIDTH, RANK, bias=False, device="cuda")
    tf32.load_state_dict(strict.state_dict())

    def forward_and_backward(layer: nn.Linear) -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x).sum(), [x, layer.weight])

    for name, layer in {"float32": strict, "TF32": tf32}.items():
        with torch.no_grad():
            exact = x.double() @ strict.weight.double().T
            error = float((layer(x) - exact).norm() / exact.norm())
            forward = milliseconds(lambda layer=layer: layer(x))
        both = milliseconds(lambda layer=layer: forward_and_backward(layer))
        print(f"{name}: relative error {error:.1e}, forward {forward:.3f} ms, with the backward pass {both:.3f} ms")


if __name__ == "__main__":
    main()
