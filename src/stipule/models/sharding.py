"""Shards weights over ranks with PyTorch's FSDP2, and keeps the forward passes of all ranks in step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from stipule.errors import RecipeError
from stipule.models.masked_policy import MaskedPolicy


def shard_model(policy: MaskedPolicy, reshard_after_forward: bool = True, device: torch.device | None = None) -> None:
    """Shards every layer's weights, gradients and optimizer state over the ranks of the default process group.

    `device` is this rank's (None: where the weights are). Weights on the CPU are moved there layer by layer, so that no
    device has to hold the whole model. Raises RecipeError for a network whose layers are no list (BERT, RoBERTa).

    With `reshard_after_forward` a layer's weights are freed after its forward pass and gathered again for its backward
    pass (ZeRO-3); without it they stay until the backward pass is done (ZeRO-2's memory). The LM head is not sharded:
    the number of its calls depends on the masked tokens of a rank's rows, and a collective in it could deadlock.
    """
    if not hasattr(policy.unwrapped_model.base_model, "layers"):
        raise RecipeError(
            f"the launch asks for sharded weights, but {type(policy.unwrapped_model).__name__} has no list of layers, "
            "to be sharded one by one; such models are small; launch with recipes/launch/ddp.yaml"
        )
    device = device or policy.device
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    networks = [policy.unwrapped_model] + ([policy.ref_model] if policy.ref_model is not None else [])
    for network in networks:
        backbone: Any = network.base_model  # type: ignore[union-attr]
        unsharded = set(network.get_output_embeddings().parameters())  # type: ignore[union-attr, operator]
        for module in (*backbone.layers, backbone):
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward, ignored_params=unsharded)
            module.set_gradient_divide_factor(1.0)  # each rank's loss is its part of one mean: gradients are summed
            module.set_force_sum_reduction_for_comms(True)  # gloo does not support the default, a scaled sum
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):  # type: ignore[union-attr]
                if not isinstance(tensor, DTensor):
                    tensor.data = tensor.data.to(device)
    policy.sharded = True


def is_sharded(policy: Any) -> bool:
    """Whether every forward pass is a collective, so that every rank must make it."""
    return getattr(policy, "sharded", False)


def any_rank_active(policy: Any, active: bool) -> bool:
    """Whether a loop of forward passes continues: while this rank has work; with sharding, while any rank has."""
    if not is_sharded(policy):
        return active
    flag = torch.tensor([int(active)], device=policy.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def dummy_forward(policy: Any) -> None:
    """Joins the other ranks' forward pass with a row of one token."""
    token = torch.full((1, 1), policy.eos_id, device=policy.device)
    policy.hidden_states(token, None, torch.ones_like(token, dtype=torch.bool), 1)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a shard. With sharding this is a collective: all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_on_first_rank(named_tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The full tensors by name on the first rank, those of shards on its CPU; nothing on the other ranks.

    With sharding this is a collective. A device holds one full tensor at a time, never the whole state.
    """
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    gathered = {}
    for name, tensor in named_tensors:
        full = full_tensor(tensor)
        if is_first:
            gathered[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return gathered


def local_shard(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's shard of a full tensor, distributed like the parameter."""
    if not isinstance(parameter, DTensor) or value.ndim != parameter.ndim:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def parameter_groups(policy: MaskedPolicy) -> list[dict[str, Any]]:
    """The trainable parameters for an optimizer. Shards and full tensors are in separate groups.

    An optimizer cannot update both kinds in one fused call.
    """
    trainable = list(policy.trainable_parameters().values())
    groups = ([p for p in trainable if isinstance(p, DTensor)], [p for p in trainable if not isinstance(p, DTensor)])
    return [{"params": group} for group in groups if group]


def full_state_dict(policy: MaskedPolicy) -> dict[str, Tensor] | None:
    """The full tensors to save of sharded weights: the adapters, or all weights. None if nothing is sharded.

    A collective: all ranks must call it; only the first gets the tensors.
    """
    if not policy.sharded:
        return None
    adapters = hasattr(policy.model, "peft_config")
    network = policy.model if adapters else policy.unwrapped_model
    return gather_on_first_rank(
        (name, tensor) for name, tensor in network.state_dict().items() if not adapters or "lora_" in name
    )
