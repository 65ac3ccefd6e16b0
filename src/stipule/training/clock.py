"""Where the seconds and the model calls of a step go."""

from __future__ import annotations

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
