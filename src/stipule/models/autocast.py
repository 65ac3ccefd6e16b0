"""What bfloat16 autocast would do again in every call, done once; and attention in float32 where that is faster.

Autocast rounds a frozen matrix whenever it is multiplied. Rounded once, it gives the same products to the bit, is half
as large, and is not read a second time.
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

    Fused attention in bfloat16 takes a CPU as long forwards and up to six times as long backwards (docs/speed.md).
    `on_cpu` says where a policy without contents is meant to run; None: where it is.
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
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    """Fused attention outside of autocast."""
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **named)


AttentionInterface.register(SDPA_FLOAT32, attention_in_float32)
AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)
