"""Where the seconds and the model calls of a step go."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("rollout", "score", "update", "reward")


class Clock:
    """Seconds and model calls (rows x calls) of one step, by part."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.calls = dict.fromkeys(PARTS[:3], 0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time spent within to `name`."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        return {f"seconds/{k}": round(v, 4) for k, v in self.seconds.items()} | {
            f"calls/{k}": v for k, v in self.calls.items()
        }


def peak_memory(device: torch.device) -> float | None:
    """GiB: the most that the device has held since the start, or the process where that is the CPU; None if unknown."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    if sys.platform == "win32":
        return None
    import resource

    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
