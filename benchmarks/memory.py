"""Bytes that scoring and updating hold at their peak, against the published way: python -m benchmarks.memory"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import reference
from benchmarks.rl_step import finished
from benchmarks.subjects import build, prompts
from benchmarks.timing import write
from stipule.estimators.elbo import Elbo
from stipule.estimators.token_logps import estimate_logps
from stipule.rng import make_generator


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations inside have made and that are still alive. Exact, not sampled."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[key] = weakref.ref(storage, lambda _: self._drop(key, size))

    def _drop(self, key: int, size: int) -> None:
        self.now -= size
        self._known.pop(key, None)


def peak(work: Callable[[], object]) -> int:
    with LiveBytes() as live_bytes:
        work()
    return live_bytes.peak


def measure(size: str, rows: int, width: int, length: int, samples: int = 3) -> dict[str, dict[str, int]]:
    """Log-probabilities without and with gradients, K mask samples of each response."""
    policy = build(size, lora=8)
    batch = prompts(policy, rows, width)
    tokens = torch.randint(4, policy.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    rollouts = finished(policy, batch, tokens)
    estimator = Elbo(num_samples=samples)
    (mask_samples,) = estimator.sample_masks(rollouts, 1, make_generator(0, 0, "views"))
    advantage = torch.ones(rows)
    sides = {
        "reference": lambda: reference.estimate(policy, rollouts, mask_samples),
        "stipule": lambda: estimate_logps(policy, rollouts, mask_samples, estimator, advantage),
    }
    results: dict[str, dict[str, int]] = {}
    for name, run in sides.items():

        def update(run: Callable[[], torch.Tensor] = run) -> None:
            run().sum().backward()
            policy.model.zero_grad()

        def without(run: Callable[[], torch.Tensor] = run) -> None:
            with torch.no_grad():
                run()

        update()
        results[name] = {"no gradient": peak(without), "update": peak(update)}
    return results


def main() -> None:
    results = {}
    print("| | | no gradient, MiB | update, MiB | no gradient, fraction | update, fraction |\n" + "|---" * 6 + "|")
    for size, shape in {"llada-like": (6, 32, 64), "V = 32,000": (6, 16, 64)}.items():
        results[size] = measure(size, *shape)
        base = results[size]["reference"]
        for name, row in results[size].items():
            cells = [f"{row[part] / 2**20:.1f}" for part in row] + [f"{row[part] / base[part]:.3f}" for part in row]
            print(f"| {size} | {name} | {' | '.join(cells)} |", flush=True)
    write("memory", results)


if __name__ == "__main__":
    main()
