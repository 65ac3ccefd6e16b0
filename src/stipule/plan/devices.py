"""Data sheets of devices, and the fraction of their rates that a run is assumed to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stipule.errors import RecipeError

GB = 10**9


@dataclass(frozen=True)
class Device:
    """Data-sheet figures of one device: dense (not sparse) operations, and one direction of each link."""

    name: str
    bfloat16: float  # operations per second
    tf32: float
    float32: float
    bandwidth: float  # bytes per second between memory and cores
    memory: int  # bytes
    link: float  # bytes per second to the other devices of its node
    network: float = 50.0 * GB  # bytes per second to other nodes: one 400 Gbit/s adapter per device


# Vendors' data sheets: dense tensor-core rates with float32 accumulation. Published NVLink figures add both directions,
# so these are half of them. PCIe 4 x16 is 32 GB/s.
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device("rtx3090", 71e12, 35.6e12, 35.6e12, 936 * GB, 24 * GB, 32 * GB, 3 * GB),
        Device("rtx4090", 165.2e12, 82.6e12, 82.6e12, 1008 * GB, 24 * GB, 32 * GB, 3 * GB),
        Device("a100", 312e12, 156e12, 19.5e12, 2039 * GB, 80 * GB, 300 * GB, 25 * GB),
        Device("a800", 312e12, 156e12, 19.5e12, 2039 * GB, 80 * GB, 200 * GB, 25 * GB),
        Device("h100", 989e12, 494e12, 67e12, 3350 * GB, 80 * GB, 450 * GB),
        Device("h800", 989e12, 494e12, 67e12, 3350 * GB, 80 * GB, 200 * GB),
        Device("h200", 989e12, 494e12, 67e12, 4800 * GB, 141 * GB, 450 * GB),
        Device("b200", 2250e12, 1100e12, 75e12, 8000 * GB, 180 * GB, 900 * GB),
    )
}

# Guesses until `stipule plan --measure` or benchmarks/gpu_llada8b.py has run on the device: the fraction of the rated
# matmul speed that a forward pass, and a forward and backward pass, of a transformer of this size usually reach.
FORWARD_EFFICIENCY = 0.5
UPDATE_EFFICIENCY = 0.4
LINK_EFFICIENCY = 0.7
# Bytes of CUDA and its libraries, and a factor for unused blocks of the allocator. Both are guesses.
OVERHEAD = 1.5 * 2**30
FRAGMENTATION = 1.05


def device_named(name: str) -> Device:
    """The device of this name. Raises RecipeError for an unknown one."""
    device = DEVICES.get(name.lower())
    if device is None:
        raise RecipeError(
            f"--device is {name!r}; allowed: {', '.join(DEVICES)}; for another device, run on it: "
            "stipule plan RECIPE --measure"
        )
    return device


def bytes_of(text: str) -> int:
    """Converts 80GB, 24GiB or 512MB to bytes. Raises RecipeError for anything else."""
    units = {"GIB": 2**30, "MIB": 2**20, "GB": GB, "MB": 10**6, "G": GB, "M": 10**6}
    upper = text.strip().upper()
    for unit, size in units.items():
        number = upper.removesuffix(unit)
        if number != upper:
            try:
                amount = float(number)
            except ValueError:
                break
            if amount > 0:
                return int(amount * size)
    raise RecipeError(f"--memory is {text!r}; it must be a number above 0 with a unit; try 80GB or 24GiB")
