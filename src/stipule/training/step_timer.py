"""Seconds and forward passes of a step, by phase."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Int
from torch import Tensor

PHASES = ("rollout", "logps", "update", "reward")


class StepTimer:
    """Seconds, forward passes (rows x calls) and computed tokens of one step, by phase."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.nfe = dict.fromkeys(PHASES[:3], 0)
        self.nfe_tokens = dict.fromkeys(PHASES[:3], 0)

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Adds the time spent inside to `phase`."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase] += time.perf_counter() - started

    def count(
        self, phase: str, nfe: Int[Tensor, "*rows"] | Bool[Tensor, "*rows"], nfe_tokens: Int[Tensor, "*rows"]
    ) -> None:
        """Adds forward passes, and the tokens that they computed, to `phase`."""
        calls, tokens = torch.stack([nfe.sum(), nfe_tokens.sum()]).tolist()  # in one copy to the host
        self.nfe[phase] += calls
        self.nfe_tokens[phase] += tokens

    def metrics(self) -> dict[str, float]:
        return (
            {f"time/{k}": round(v, 4) for k, v in self.seconds.items()}
            | {f"nfe/{k}": v for k, v in self.nfe.items()}
            | {f"nfe_tokens/{k}": v for k, v in self.nfe_tokens.items()}
        )


def peak_memory(device: torch.device) -> float | None:
    """GiB: the most memory that the GPU has held since the start, or the process on a CPU; None if not known."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
