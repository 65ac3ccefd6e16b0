"""TF32 is allowed for the products of adapters on a less precise base, forwards and backwards, and for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stipule.models.adapter_tf32 import Tf32Linear, allow_tf32_in_adapters
from stipule.models.loading import LoRA, ModelConfig, load_policy
from stipule.rng import make_generator
from tests.models import published

RANK = 3  # no other dimension of the model is 3
INPUT_IDS = torch.tensor([[4, 5, 1, 6, 1], [7, 1, 8, 9, 4]])
EVERY = torch.ones_like(INPUT_IDS, dtype=torch.bool)


class Products(TorchDispatchMode):
    """The float32 matrix products: whether one side has RANK numbers, and whether TF32 was allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__.split(".")[0] in ("mm", "addmm", "bmm") and args[-1].dtype == torch.float32:
            is_adapter = any(RANK in arg.shape for arg in args[-2:])
            self.seen.append((is_adapter, torch.backends.cuda.matmul.allow_tf32))
        return function(*args, **(kwargs or {}))


def gradients(policy: Any) -> tuple[torch.Tensor, list[torch.Tensor], list[tuple[bool, bool]]]:
    with Products() as products, policy.update_mode(make_generator(0, 0, "test")):
        logits = policy.logits(INPUT_IDS, None, EVERY)
        logits.square().mean().backward()
    return logits.detach(), [p.grad for p in policy.trainable_parameters().values()], products.seen


def adapted(folder: Path, **options: Any) -> Any:
    policy = load_policy(ModelConfig(path=str(folder), lora=LoRA(rank=RANK, alpha=6), attention="eager", **options))
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)
    return policy


@pytest.mark.parametrize("name", ["llada", "dream", "modernbert"])
def test_only_the_products_of_adapters_may_use_tf32_and_results_are_the_same(tmp_path: Path, name: str) -> None:
    published.write(name, tmp_path / "m")
    policy = adapted(tmp_path / "m", dtype="bfloat16")
    logits, expected, products = gradients(policy)
    assert not any(allowed for _, allowed in products)
    policy.model.zero_grad(set_to_none=True)
    allow_tf32_in_adapters(policy.model)
    same_logits, same, products = gradients(policy)
    assert torch.equal(same_logits, logits)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(same, expected, strict=True))
    assert any(is_adapter for is_adapter, _ in products)
    assert all(is_adapter == allowed for is_adapter, allowed in products)
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_the_custom_gradient_is_that_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Tf32Linear(4, 3, bias=False, dtype=torch.float64)
    inputs = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(layer, {"weight": w}, x), (inputs, layer.weight)
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": "bfloat16"}, True),
        ({"quantize": "nf4"}, True),
        ({"dtype": "float32"}, False),
        ({"autocast": True}, False),
        ({"dtype": "bfloat16", "autocast": True}, False),  # adapters compute in bfloat16
    ],
)
def test_float32_recipes_are_as_before(options: dict, expected: bool) -> None:
    assert ModelConfig(path="x", **options).adapters_use_tf32 == expected
