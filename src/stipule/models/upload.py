"""Copies host tensors to a GPU without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; itself if it is there already.

    A copy of ordinary memory waits until the GPU has done everything that was queued before. A copy of pinned memory
    does not, and PyTorch keeps the pinned memory until the copy is done.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
