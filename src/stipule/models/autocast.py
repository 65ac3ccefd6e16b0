"""Rounds frozen matrices to bfloat16 once instead of in every forward pass, and keeps CPU attention in float32.

Autocast rounds a frozen matrix each time it is multiplied. A matrix that is rounded once gives bitwise the same
products, takes half the memory, and needs no second read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from stipule.models.masked_policy import MaskedPolicy

SDPA_FLOAT32 = "sdpa_in_float32"


def prepare_autocast(policy: MaskedPolicy, on_cpu: bool | None = None) -> None:
    """Rounds the matrices that no update changes; on a CPU, also keeps fused attention in float32.

    On a CPU, fused attention in bfloat16 is as slow forwards and up to six times as slow backwards (docs/speed.md).
    `on_cpu`: whether a policy on the meta device will run on a CPU; None: decided by the device of the policy.
    """
    on_cpu = policy.device.type == "cpu" if on_cpu is None else on_cpu
    networks: list[Any] = [policy.unwrapped_model] + ([] if policy.ref_model is None else [policy.ref_model])
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Linear) and not any(p.requires_grad for p in module.parameters(recurse=False)):
                for name, tensor in module.named_parameters(recurse=False):
                    rounded = tensor.detach().to(torch.bfloat16)
                    module.register_parameter(name, nn.Parameter(rounded, requires_grad=False))
        if on_cpu and network.config._attn_implementation == "sdpa":
            network.config._attn_implementation = SDPA_FLOAT32


def attention_in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Fused attention outside of autocast."""
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


AttentionInterface.register(SDPA_FLOAT32, attention_in_float32)
AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)
