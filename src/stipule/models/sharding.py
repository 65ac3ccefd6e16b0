"""Weights spread over ranks with PyTorch's FSDP2, and how ranks with unequal work still make the same calls."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from stipule.models.masked_policy import MaskedPolicy


def shard_model(policy: MaskedPolicy, reshard_after_forward: bool = True) -> None:
    """Spreads every layer's weights, gradients and optimizer state over the ranks of the default process group.

    `reshard_after_forward` frees a layer's weights after its forward and gathers them again for its backward (ZeRO-3); without it
    they stay until the backward is done (ZeRO-2's use of memory). The LM head stays whole on every rank: how often it
    is called depends on what a rank's rows hide, and a collective in it could wait for ever.
    """
    networks = [policy.unwrapped_model] + ([policy.ref_model] if policy.ref_model is not None else [])
    for network in networks:
        body: Any = network.base_model  # type: ignore[union-attr]
        full_tensor = set(network.get_output_embeddings().parameters())  # type: ignore[union-attr, operator]
        for part in (*body.layers, body):
            fully_shard(part, reshard_after_forward=reshard_after_forward, ignored_params=full_tensor)
            part.set_gradient_divide_factor(1.0)  # losses are shares of one mean: gradients add up
            part.set_force_sum_reduction_for_comms(True)  # else as a scaled sum, which gloo does not know
    policy.sharded = True


def is_sharded(policy: Any) -> bool:
    """Whether every rank must make every model call."""
    return getattr(policy, "sharded", False)


def any_rank_active(policy: Any, going: bool) -> bool:
    """Whether a loop of model calls continues: while this rank has work, under sharding while any rank has."""
    if not is_sharded(policy):
        return going
    flag = torch.tensor([int(going)], device=policy.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def dummy_forward(policy: Any) -> None:
    """Takes part in the others' model call with a row of one token."""
    token = torch.full((1, 1), policy.eos_id, device=policy.device)
    policy.hidden_states(token, None, torch.ones_like(token, dtype=torch.bool), 1)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a shard; under sharding a collective, so all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a full tensor, laid out like the parameter."""
    if not isinstance(parameter, DTensor) or value.ndim != parameter.ndim:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def parameter_groups(policy: MaskedPolicy) -> list[dict[str, Any]]:
    """The trained parameters for an optimizer: shards and whole tensors cannot be updated in one sweep."""
    trained = list(policy.trainable_parameters().values())
    groups = ([p for p in trained if isinstance(p, DTensor)], [p for p in trained if not isinstance(p, DTensor)])
    return [{"params": group} for group in groups if group]


def full_state_dict(policy: MaskedPolicy) -> dict[str, Tensor] | None:
    """What is to be saved of sharded weights, whole: the adapters, or everything. None where nothing is sharded.

    A collective: all ranks must ask.
    """
    if not policy.sharded:
        return None
    adapters = hasattr(policy.model, "peft_config")
    network = policy.model if adapters else policy.unwrapped_model
    return {
        name: full_tensor(tensor).cpu()
        for name, tensor in network.state_dict().items()
        if not adapters or "lora_" in name
    }
