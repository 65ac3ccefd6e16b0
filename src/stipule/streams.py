"""Where all randomness starts: a generator for each (seed, step, purpose, rank)."""

import hashlib

import torch


def stream(seed: int, step: int, purpose: str, rank: int = 0) -> torch.Generator:
    """A fresh CPU generator that is a function of its arguments alone.

    Noise is drawn on the CPU and then moved, so a run draws the same numbers on every device; and because nothing is
    carried from one step to the next, a step can be replayed alone and resuming needs no saved generator state.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}/{rank}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
