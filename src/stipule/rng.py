"""Random generators: one for each (seed, step, purpose, rank)."""

import hashlib

import torch


def make_generator(seed: int, step: int, purpose: str, rank: int = 0) -> torch.Generator:
    """A new CPU generator that depends on its arguments only.

    Noise is drawn on the CPU and then moved, so a run draws the same numbers on every device. No generator state is
    carried from one step to the next, so a single step can be repeated, and resuming needs no saved state. The purpose
    is part of the seed: renaming one changes every number drawn for it.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}/{rank}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def generator_devices(device: torch.device | str) -> list[torch.device]:
    """The devices for torch.random.fork_rng where a computation on this device uses the global generators.

    Without them it saves the generators of all GPUs, and warns if there are several.
    """
    device = torch.device(device)
    return [device] if device.type == "cuda" else []
