"""Several processes in one run: which part each of them does, and how the parts become one result.

Every rank holds the whole step: problems, noise, rewards, advantages and masks depend on (seed, step, purpose) and on
what all ranks have gathered. A rank samples and grades its own groups and updates on its own rows. The ranks exchange
sums of parts of one global mean. So no result depends on the number of ranks, except for rounding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stipule.errors import RecipeError, StipuleError
from stipule.models.weights import first_line
from stipule.types import Rollouts

Item = TypeVar("Item")
# A rank waits this long for the slowest, e.g. while models load. A rank that has died is noticed at once, by its
# connection.
BARRIER_TIMEOUT = timedelta(hours=1)


class DistributedContext:
    """The processes of a run. With one process every method is the identity."""

    def __init__(self, accelerator: Accelerator):
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device

    @property
    def is_main_process(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def local_slice(self, count: int, unit: int = 1) -> slice:
        """This rank's consecutive part of `count` rows, `unit` of which stay together. Parts differ by one unit."""
        units = count // unit
        start, stop = units * self.rank // self.world_size, units * (self.rank + 1) // self.world_size
        return slice(start * unit, stop * unit)

    def all_gather_rollouts(self, local: Rollouts) -> Rollouts:
        """The rollouts of all ranks, in order of ranks."""
        if self.world_size == 1:
            return local
        batches = [batch for batch in self._gather_objects(local.map(Tensor.cpu)) if len(batch)]
        return Rollouts.concatenate(batches).map(lambda tensor: tensor.to(self.device))

    def all_gather_object(self, local: Sequence[Item]) -> list[Item]:
        """The items of all ranks, in order of ranks."""
        if self.world_size == 1:
            return list(local)
        return [item for items in self._gather_objects(list(local)) for item in items]

    def reduce_sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        return self._reduce(value, dist.ReduceOp.SUM)

    def reduce_max(self, value: Tensor) -> Tensor:
        """The largest value of a tensor over all ranks."""
        return self._reduce(value, dist.ReduceOp.MAX)

    def all_reduce_max(self, count: int) -> int:
        """The largest of all ranks' numbers."""
        return int(self.reduce_max(torch.tensor(count, device=self.device)))

    def any_rank(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.all_reduce_max(int(flag)))

    def barrier(self) -> None:
        """Waits until all ranks are here."""
        if self.world_size > 1:
            dist.barrier()

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over ranks, in one exchange per dtype. A rank without rows takes part with zeros.

        Sharded parameters have summed theirs in the backward pass.
        """
        if self.world_size == 1:
            return
        unsharded = [p for p in parameters if not isinstance(p, DTensor)]
        for parameter in unsharded:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for dtype in dict.fromkeys(p.dtype for p in unsharded):
            gradients = [p.grad for p in unsharded if p.dtype == dtype and p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def clip_grad_norm(self, parameters: Sequence[nn.Parameter], max_grad_norm: float) -> Tensor:
        """Scales gradients down to a norm of at most `max_grad_norm`. Returns the norm before."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not any(isinstance(g, DTensor) for g in gradients):
            return nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        unsharded = [g for g in gradients if not isinstance(g, DTensor)]
        shards = [g.to_local() for g in gradients if isinstance(g, DTensor)]
        squares = torch.stack([g.float().square().sum() for g in shards]).sum()
        norm = (self.reduce_sum(squares) + sum(g.float().square().sum() for g in unsharded)).sqrt()
        for gradient in (*unsharded, *shards):
            gradient.mul_((max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _reduce(self, value: Tensor, operation: Any) -> Tensor:
        if self.world_size == 1:
            return value
        value = value.detach().to(self.device, copy=True)
        dist.all_reduce(value, operation)
        return value

    def _gather_objects(self, local: Item) -> list[Item]:
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, local)
        return gathered


def init_distributed(prompts_per_step: int) -> tuple[Accelerator, DistributedContext]:
    """Joins the processes that torchrun or accelerate launch has started. Without them: one process.

    Raises RecipeError if the launch cannot work: more processes than devices, an unsupported engine, or a number of
    processes that does not divide `training.prompts_per_step`.
    """
    world_size, local_world_size = _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE")
    devices = torch.cuda.device_count()
    if world_size > 1 and prompts_per_step % world_size:
        divisors = [n for n in range(1, prompts_per_step + 1) if prompts_per_step % n == 0]
        raise RecipeError(
            f"training.prompts_per_step is {prompts_per_step} and {world_size} processes were started; a group is "
            f"never split between processes, so their number must divide it; start "
            f"{max(n for n in divisors if n <= world_size)}, or set training.prompts_per_step to "
            f"{-(-prompts_per_step // world_size) * world_size}"
        )
    on_cpu = devices == 0 or _is_set("ACCELERATE_USE_CPU")
    if not on_cpu and local_world_size > devices:
        raise RecipeError(
            f"{local_world_size} processes were started on a machine with {devices} GPUs; each needs one of its own; "
            f"start at most {devices} (--nproc_per_node {devices}), or set ACCELERATE_USE_CPU=true to run on the CPU"
        )
    check_accelerate_settings()
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        raise RecipeError(
            "the launch asks for DeepSpeed; stipule shards with PyTorch's FSDP2, which divides memory in the same way; "
            "use recipes/launch/zero2.yaml or zero3.yaml"
        )
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=BARRIER_TIMEOUT)])
    if accelerator.num_processes != world_size:
        raise RecipeError(
            f"{world_size} processes were started but {accelerator.num_processes} joined; start them with torchrun, on "
            "a CPU with ACCELERATE_USE_CPU=true"
        )
    return accelerator, DistributedContext(accelerator)


def check_accelerate_settings() -> None:
    """Raises RecipeError for settings of an accelerate configuration that would change gradients without a word.

    accelerate multiplies a loss by a scale for fp16, and divides it by the number of accumulated steps.
    """
    for name, setting, allowed, instead in (
        ("ACCELERATE_MIXED_PRECISION", "mixed_precision", ("no", "bf16"), "model.dtype and model.autocast"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", ("1",), "training.micro_batch_size"),
    ):
        value = os.environ.get(name, allowed[0]).lower()
        if value not in allowed:
            raise RecipeError(
                f"the launch sets {setting} to {value} ({name}), which would scale gradients; only {allowed[0]} is "
                f"supported; set it to {allowed[0]} in the accelerate configuration, and use {instead} in the recipe"
            )


@contextmanager
def lost_process_reported() -> Iterator[None]:
    """Inside, a connection that breaks because another rank has ended raises StipuleError: one sentence."""
    try:
        yield
    except RuntimeError as cause:
        # gloo raises a plain RuntimeError, with the place in its source.
        if not (isinstance(cause, dist.DistError) or "/gloo/" in str(cause)):
            raise
        raise StipuleError(
            f"another process of this run has ended or cannot be reached ({first_line(cause)}), so this one ends too; "
            "the reason is in that process's output, or in the system's log if it was killed; the last checkpoint is "
            "complete: start all processes again with --resume"
        ) from cause


def requested_sharding() -> str | None:
    """The sharding that the launch asks for: `zero3`, `zero2` (weights stay gathered until the backward pass), or None.

    Raises RecipeError for options of an accelerate configuration that are not supported.
    """
    if not _is_set("ACCELERATE_USE_FSDP"):
        return None
    for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"):
        if _is_set(name):
            raise RecipeError(
                f"the launch sets {name}; sharding here has no offloading and no checkpointing; remove {name.lower()} "
                "from the launch configuration, or start from recipes/launch/fsdp2.yaml"
            )
    return "zero3" if _is_set("FSDP_RESHARD_AFTER_FORWARD", "true") else "zero2"


def is_main_process() -> bool:
    """Whether this process writes and prints, known before any process has joined."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_files(paths: Iterable[Path]) -> None:
    """Waits until the main process has written these files, before any process has joined.

    Raises StipuleError if it has not after BARRIER_TIMEOUT. A main process that fails ends the others by the launcher.
    """
    end = time.monotonic() + BARRIER_TIMEOUT.total_seconds()
    for path in paths:
        while not path.exists():
            if time.monotonic() > end:
                raise StipuleError(f"{path} has not been written by the first process; do all processes see its disk?")
            time.sleep(0.05)


def _number(name: str) -> int:
    return int(os.environ.get(name, "1"))


def _is_set(name: str, default: str = "") -> bool:
    return os.environ.get(name, default).lower() in ("1", "true", "yes", "full_shard")
