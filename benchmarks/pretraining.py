"""Seconds of one Muon step on the matrices of tiny/sudoku_worked: python -m benchmarks.pretraining

torch.optim.Muon, which iterates in bfloat16, against ours, in turns. Gradients are random.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.timing import write
from stipule.models.loading import ModelConfig, load_policy
from stipule.training.muon import Muon
from stipule.training.provenance import has_bfloat16_units

TURNS = 11


def main() -> None:
    layers = load_policy(ModelConfig(path="tiny/sudoku_worked")).unwrapped_model.base_model.layers
    matrices = [weight.detach().clone() for weight in layers.parameters() if weight.ndim == 2]
    sides = {
        "torch.optim.Muon": torch.optim.Muon([m.clone() for m in matrices], adjust_lr_fn="original"),
        "stipule.training.muon.Muon": Muon([m.clone() for m in matrices], lr=1e-3),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    generator = torch.Generator().manual_seed(0)
    for turn in range(TURNS + 1):  # the first one is not counted
        gradients = [torch.randn(matrix.shape, generator=generator) for matrix in matrices]
        for name, optimizer in sides.items():
            for matrix, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
                matrix.grad = gradient.clone()
            started = time.perf_counter()
            optimizer.step()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    units = "with" if has_bfloat16_units() else "without"
    print(f"{len(matrices)} matrices, {torch.get_num_threads()} threads, a processor {units} bfloat16 units\n")
    print("| optimizer | seconds of a step (range) |\n|---|---|")
    for name, taken in seconds.items():
        print(f"| `{name}` | {statistics.median(taken):.4f} ({min(taken):.4f} to {max(taken):.4f}) |")
    write("pretraining", seconds)


if __name__ == "__main__":
    main()
