"""A GPU that is none: tensors that claim to be on CUDA, compute on the CPU, and count how often the host would wait.

    with PretendDevice() as device:
        policy = load_policy(config, device="cuda")
        ...
    device.waits  # {("rollouts/sampler.py:104", "item"): 3, ...}

Inside, `cuda` is a device like any other: `torch.cuda.is_available()` is true, factory functions and `.to` accept it,
and `tensor.device` says so. As on CUDA an operation on tensors of two devices raises, except where CUDA itself accepts
a CPU tensor: copies, scalars (0-dim) in elementwise operations, and indices. What makes the host wait for the GPU is
counted by the line of the package that asked for it: reading a value, shapes that depend on values, and copies from or
to pageable memory. A copy of pinned memory with `non_blocking=True` is free.

What it cannot show: kernels, their speed and memory, streams, and rounding on a GPU. `docs/gpu.md` says what was run on
one. PyTorch without CUDA has no guard for CUDA tensors, so below Python they are tensors of the device `meta:1`.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import stipule

BELOW_PYTHON = torch.device("meta", 1)
CUDA = torch.device("cuda", 0)
PACKAGE = str(Path(stipule.__file__).parent) + "/"
aten = torch.ops.aten

# The host needs the result, or its shape, before it can go on.
READS = {
    aten._local_scalar_dense: "item", aten.item: "item", aten.is_nonzero: "item", aten.equal: "equal",
    aten.nonzero: "nonzero", aten.masked_select: "masked_select", aten._unique2: "unique", aten.unique_dim: "unique",
    aten.unique_consecutive: "unique", aten.bincount: "bincount",
}  # fmt: skip
COPIES = {aten._to_copy, aten.copy_, aten.copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
# CUDA kernels that read every tensor on the GPU, so that not even a scalar may be elsewhere.
STRICT = {
    aten.index_select, aten.gather, aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_, aten.index_add,
    aten.index_copy, aten.masked_scatter, aten.cat, aten.stack, aten.embedding, aten.mm, aten.bmm, aten.addmm,
    aten.searchsorted, aten.sort, aten.argsort,
}  # fmt: skip
PASSES_THROUGH = {aten.lift_fresh, aten.lift, aten.detach, aten.alias}
ROUNDED_BY_AUTOCAST = {torch.nn.functional.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__}


class PretendTensor(Tensor):
    """A CPU tensor that claims to be on CUDA. It has no memory of its own."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        with torch.inference_mode(False):  # a view of a normal tensor is one, also in inference mode
            tensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                device=BELOW_PYTHON,
            )  # fmt: skip
        tensor.inner = inner
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = is_meta = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a pretended CUDA tensor outside of its PretendDevice")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PretendTensor({self.inner!r}, device='cuda:0')"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return PretendTensor, (self.inner,)


class MixedDevicesError(RuntimeError):
    """An operation got tensors of two devices. CUDA would raise, too."""


class PretendDevice:
    """Inside, there is one CUDA device. `waits` counts host waits by source line and reason."""

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self._modes = (_DeviceNames(self), _Operations(self))
        self._run_backward = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
        self._patches = [patch.object(torch.cuda, name, value) for name, value in self._functions().items()]
        self._patches += [patch.object(torch.autograd, "_engine_run_backward", self._backward)]

    def _functions(self) -> dict[str, Any]:
        """What `torch.cuda` answers."""
        nothing = ("set_device", "_lazy_init", "empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode")
        nothing += ("set_rng_state", "manual_seed", "manual_seed_all")
        answers = {
            "is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True,
            "max_memory_allocated": 0, "mem_get_info": (80 << 30, 80 << 30), "get_device_name": "pretended",
            "get_device_capability": (9, 0), **dict.fromkeys(nothing),
        }  # fmt: skip
        constant = {name: partial(lambda answer, *_, **__: answer, answer) for name, answer in answers.items()}
        return constant | {
            "synchronize": lambda device=None: self.wait("synchronize"),
            "get_rng_state": lambda device=None: torch.get_rng_state(),
        }

    @property
    def total(self) -> int:
        """All host waits so far."""
        return sum(self.waits.values())

    def wait(self, reason: str) -> None:
        """Counts a wait for the line of the package that is running."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                self.waits[f"{frame.f_code.co_filename[len(PACKAGE) :]}:{frame.f_lineno}", reason] += 1
                return
            frame = frame.f_back
        self.waits["tests", reason] += 1

    def _backward(self, *args: Any, **kwargs: Any) -> Any:
        with self._modes[0]:  # it is off inside of the functions that it handles, and `backward` is one of them
            return self._run_backward(*args, **kwargs)

    def __enter__(self) -> PretendDevice:
        for one in self._patches:
            one.start()
        for mode in self._modes:
            mode.__enter__()
        # Tied parameters stay one object, as they do where `.to` changes the data of a parameter.
        torch.__future__.set_swap_module_params_on_conversion(True)
        return self

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_swap_module_params_on_conversion(False)
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        for one in self._patches:
            one.stop()


class _Operations(TorchDispatchMode):
    """Runs every operation on the CPU tensors inside, after looking at the devices."""

    def __init__(self, device: PretendDevice):
        super().__init__()
        self.wait = device.wait

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = dict(kwargs or {}), func.overloadpacket
        if PretendTensor not in types and kwargs.get("device") != BELOW_PYTHON and not kwargs.get("pin_memory"):
            return func(*args, **kwargs)
        if _is_composite(func):  # in inference mode compositions of operations arrive here
            with self:
                return func.decompose(*args, **kwargs)
        tensors = _tensors((args, kwargs))
        on_device = any(isinstance(t, PretendTensor) for t in tensors)
        device = kwargs.get("device")
        to_device = device == BELOW_PYTHON or (on_device and device is None)
        if device == BELOW_PYTHON:
            kwargs["device"] = torch.device("cpu")
            generator = kwargs.get("generator")
            if generator is not None and generator.device.type == "cpu":
                raise MixedDevicesError("Expected a 'cuda' device type for generator but found 'cpu'")
        if on_device:
            self._check(packet, tensors, args)
        self._count(packet, tensors, args, kwargs, to_device)
        if packet in COPIES:
            kwargs["non_blocking"] = False
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if packet is aten.histc and on_device:  # CUDA counts integers, too
            return PretendTensor(func(args[0].inner.float(), *args[1:], **kwargs).to(args[0].dtype))
        result = func(*_map(_inner, args), **_map(_inner, kwargs))
        if packet in READS and READS[packet] in ("item", "equal"):
            return result
        written = [
            i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write
        ]
        if written and len(func._schema.returns) == 1 and written[0] < len(args):
            return args[written[0]]
        return _map(_on_device, result) if to_device else result

    def _check(self, packet: Any, tensors: list[Tensor], args: Any) -> None:
        """Raises MixedDevicesError where CUDA refuses a tensor that is elsewhere."""
        if packet in COPIES or packet in PASSES_THROUGH:
            return
        elsewhere = [t for t in tensors if not isinstance(t, PretendTensor) and (t.dim() > 0 or packet in STRICT)]
        if packet in INDEXING and isinstance(args[0], PretendTensor):  # an index is copied to the device
            indices = set(map(id, _tensors(args[1])))
            elsewhere = [t for t in elsewhere if id(t) not in indices]
        if elsewhere:
            raise MixedDevicesError(
                f"Expected all tensors to be on the same device, but {packet} found at least two devices, cuda:0 and "
                f"{elsewhere[0].device}: shapes {[tuple(t.shape) for t in elsewhere]}"
            )

    def _count(self, packet: Any, tensors: list[Tensor], args: Any, kwargs: Any, to_device: bool) -> None:
        """Counts what makes the host wait."""
        on_device = any(isinstance(t, PretendTensor) for t in tensors)
        if packet in COPIES:
            source = tensors[-1]
            target = to_device if packet is aten._to_copy else isinstance(tensors[0], PretendTensor)
            if isinstance(source, PretendTensor) != target and not _is_free(source, args, kwargs):
                self.wait("copy to the device" if target else "copy to the host")
        elif on_device and packet in READS:
            self.wait(READS[packet])
        elif on_device and packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            self.wait("repeat_interleave")
        elif on_device and packet in INDEXING:
            indices = _tensors(args[1])
            values = [t for t in args[2:3] if isinstance(t, Tensor)]
            for tensor in (*indices, *values):
                if not isinstance(tensor, PretendTensor) and tensor.device.type == "cpu":
                    self.wait("copy of an index" if tensor in indices else "copy of a value")
            for tensor in indices:
                if tensor.dtype in (torch.bool, torch.uint8):
                    self.wait("nonzero of a mask")


class _DeviceNames(TorchFunctionMode):
    """Translates between `cuda` and the device that PyTorch without CUDA knows."""

    def __init__(self, device: PretendDevice):
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        tensor = args[0] if args else None
        on_device = isinstance(tensor, PretendTensor)
        if on_device and func in (Tensor.untyped_storage, Tensor.data_ptr, Tensor.storage):
            return func(tensor.inner)
        if on_device and func is Tensor.get_device:
            return 0
        if on_device and func is Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to the host")
        if on_device and func is Tensor.tolist:
            return tensor.cpu().tolist()
        if on_device and func is Tensor.cuda:
            return tensor
        if func is Tensor.cuda:
            return tensor.to(BELOW_PYTHON)
        if func in (torch.tensor, torch.as_tensor) and _below_python(kwargs.get("device")) == BELOW_PYTHON:
            return func(*args, **{**kwargs, "device": "cpu"}).to(BELOW_PYTHON)  # made on the host, then copied
        if func is Tensor.pin_memory:
            pinned = tensor.clone()
            pinned.is_pretended_pinned = True  # type: ignore[attr-defined]
            return pinned
        if on_device and func is Tensor.__setitem__ and not isinstance(args[2], Tensor):
            keys = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(key, Tensor) and key.dim() > 0 for key in keys):
                self.device.wait("copy of a value")  # CUDA copies the number to the device and puts it
        if func is torch.nn.functional.scaled_dot_product_attention and on_device:
            return _attention(*args, **kwargs)
        if func in ROUNDED_BY_AUTOCAST and torch.is_autocast_enabled("cuda"):
            args, kwargs = tuple(map(_rounded, args)), {key: _rounded(value) for key, value in kwargs.items()}
        return func(*map(_below_python, args), **{key: _below_python(value) for key, value in kwargs.items()})


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _below_python(value: Any) -> Any:
    is_cuda = (
        value.type == "cuda" if isinstance(value, torch.device) else isinstance(value, str) and value[:4] == "cuda"
    )
    return BELOW_PYTHON if is_cuda else value


def _map(function: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map(function, item) for key, item in value.items()}
    return type(value)(_map(function, item) for item in value) if type(value) in (list, tuple) else function(value)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, PretendTensor) else value


def _rounded(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, PretendTensor) and value.is_floating_point() else value


def _on_device(value: Any) -> Any:
    return PretendTensor(value) if isinstance(value, Tensor) else value


def _is_free(source: Tensor, args: Any, kwargs: Any) -> bool:
    """Whether the host goes on at once: pinned memory, and a copy that was asked not to block."""
    is_asynchronous = bool(kwargs.get("non_blocking")) or True in args[2:]
    return is_asynchronous and getattr(source, "is_pretended_pinned", False)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Attention from single operations: the choice of a fused kernel is below Python and needs a real device."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = query.to(torch.bfloat16), key.to(torch.bfloat16), value.to(torch.bfloat16)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, torch.finfo(query.dtype).min)
    return aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
