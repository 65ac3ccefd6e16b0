"""Many processes, one run: who does which part, and how parts become one result again.

Every rank holds the whole step: problems, noise, rewards, advantages and views are functions of (seed, step, purpose)
and of what all ranks have gathered. A rank denoises and grades its groups and updates on its rows; sums of shares of
one global mean are what is exchanged. So no result depends on the number of ranks beyond rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stipule.errors import RecipeError
from stipule.types import Responses

Item = TypeVar("Item")
# A rank waits this long for the one that makes the anchors; a larger store is made beforehand (stipule anchors build).
# A rank that has died is noticed at once, by its connection.
PATIENCE = timedelta(hours=1)


class Ranks:
    """The processes of a run; alone, everything is the identity."""

    def __init__(self, accelerator: Accelerator):
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def share(self, count: int, unit: int = 1) -> slice:
        """This rank's consecutive part of `count` things of which `unit` stay together; parts differ by one unit."""
        units = count // unit
        return slice(units * self.rank // self.world * unit, units * (self.rank + 1) // self.world * unit)

    def join(self, mine: Responses) -> Responses:
        """Everyone's responses, in order of ranks."""
        if self.world == 1:
            return mine
        parts = [part for part in self._everyones(mine.map(Tensor.cpu)) if len(part)]
        return Responses.join(parts).map(lambda tensor: tensor.to(self.device))

    def collect(self, mine: Sequence[Item]) -> list[Item]:
        """Everyone's items, in order of ranks."""
        return list(mine) if self.world == 1 else [item for part in self._everyones(list(mine)) for item in part]

    def sum(self, value: Tensor) -> Tensor:
        return self._reduced(value, dist.ReduceOp.SUM)

    def highest(self, value: Tensor) -> Tensor:
        return self._reduced(value, dist.ReduceOp.MAX)

    def most(self, count: int) -> int:
        """The largest of everyone's numbers."""
        return int(self.highest(torch.tensor(count, device=self.device)))

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        return bool(self.most(int(flag)))

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world > 1:
            dist.barrier()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over ranks, in one exchange per type. A rank without useful rows takes part with zeros.

        Sharded parameters have summed theirs in the backward pass.
        """
        if self.world == 1:
            return
        plain = [p for p in parameters if not isinstance(p, DTensor)]
        for parameter in plain:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for dtype in dict.fromkeys(p.dtype for p in plain):
            gradients = [p.grad for p in plain if p.dtype == dtype and p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def clip_gradients(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """Scales gradients down to a norm of at most `most`; the norm before it."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not any(isinstance(g, DTensor) for g in gradients):
            return nn.utils.clip_grad_norm_(parameters, most)
        whole = [g for g in gradients if not isinstance(g, DTensor)]
        shards = [g.to_local() for g in gradients if isinstance(g, DTensor)]
        squares = torch.stack([g.float().square().sum() for g in shards]).sum()
        norm = (self.sum(squares) + sum(g.float().square().sum() for g in whole)).sqrt()
        for gradient in (*whole, *shards):
            gradient.mul_((most / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _reduced(self, value: Tensor, how: Any) -> Tensor:
        if self.world == 1:
            return value
        value = value.detach().to(self.device, copy=True)
        dist.all_reduce(value, how)
        return value

    def _everyones(self, mine: Item) -> list[Item]:
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, mine)
        return parts


def gather_ranks(problems: int) -> tuple[Accelerator, Ranks]:
    """Joins the processes that torchrun or accelerate launch has started; alone without them.

    Raises RecipeError if the launch cannot work: more processes than devices, an engine that is not ours, or a number
    of processes that does not divide `training.problems`.
    """
    asked, local = _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE")
    devices = torch.cuda.device_count()
    if asked > 1 and problems % asked:
        fits = [n for n in range(1, problems + 1) if problems % n == 0]
        raise RecipeError(
            f"training.problems is {problems} and {asked} processes were started; groups never cross processes, so "
            f"their number must divide it; start {max(n for n in fits if n <= asked)}, or set training.problems to "
            f"{-(-problems // asked) * asked}"
        )
    on_cpu = devices == 0 or _says("ACCELERATE_USE_CPU")
    if not on_cpu and local > devices:
        raise RecipeError(
            f"{local} processes were started on a machine with {devices} GPUs; each needs one of its own; start at "
            f"most {devices} (--nproc_per_node {devices}), or set ACCELERATE_USE_CPU=true to run on the CPU"
        )
    if _says("ACCELERATE_USE_DEEPSPEED"):
        raise RecipeError(
            "the launch asks for DeepSpeed; sharding is done by PyTorch's FSDP2 here, with the same split of memory; "
            "use recipes/launch/zero2.yaml or zero3.yaml"
        )
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    if accelerator.num_processes != asked:
        raise RecipeError(
            f"{asked} processes were started but {accelerator.num_processes} joined; start them with torchrun, on a "
            "CPU with ACCELERATE_USE_CPU=true"
        )
    return accelerator, Ranks(accelerator)


def sharding_asked() -> str | None:
    """What the launch says of sharding: `zero3`, `zero2` (weights stay gathered until the backward), or None.

    Raises RecipeError for what an accelerate configuration may ask beyond that.
    """
    if not _says("ACCELERATE_USE_FSDP"):
        return None
    for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"):
        if _says(name):
            raise RecipeError(
                f"the launch sets {name}; weights are sharded without offloading or checkpointing here; remove "
                f"{name.lower()} from the launch configuration, or start from recipes/launch/fsdp2.yaml"
            )
    return "zero3" if _says("FSDP_RESHARD_AFTER_FORWARD", "true") else "zero2"


def leads() -> bool:
    """Whether this process is the one that writes and prints, known before any process has joined."""
    return int(os.environ.get("RANK", "0")) == 0


def _number(name: str) -> int:
    return int(os.environ.get(name, "1"))


def _says(name: str, otherwise: str = "") -> bool:
    return os.environ.get(name, otherwise).lower() in ("1", "true", "yes", "full_shard")
