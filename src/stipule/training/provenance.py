"""Where a result was computed: the processor and its instruction set, the commit of the code, and files of your own."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stipule.object_import import import_object, is_reference, source_hash

# Flags of /proc/cpuinfo: x86 has the first two, ARM the third.
BFLOAT16_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def processor() -> str:
    """The processor's name from /proc/cpuinfo, else its architecture."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str] | None:
    """The flags of the processor in /proc/cpuinfo; None on a system without it."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return frozenset(flags.split()) if flags else None


def has_bfloat16_units() -> bool:
    """Whether this processor is known to multiply in bfloat16 as fast as in float32, or faster."""
    return bool((cpu_flags() or frozenset()) & BFLOAT16_UNITS)


def instruction_set(flags: frozenset[str] | None) -> str:
    """The vector instructions that torch uses on this CPU, and whether the processor multiplies in bfloat16."""
    import torch  # here, because the report page reads records without it

    if flags is None:
        return torch.backends.cpu.get_cpu_capability()
    units = "with" if flags & BFLOAT16_UNITS else "without"
    return f"{torch.backends.cpu.get_cpu_capability()}, {units} bfloat16 units"


def slow_bfloat16(dtype: str, autocast: bool, on_cpu: bool, flags: frozenset[str] | None) -> str | None:
    """A warning if a model would compute in bfloat16 on a processor without bfloat16 units; None if it is not so.

    Nothing is known, and nothing is said, without flags.
    """
    if not on_cpu or flags is None or flags & BFLOAT16_UNITS:
        return None
    if autocast:
        setting, remedy = "model.autocast is true", "model.autocast=false"
    elif dtype == "bfloat16":
        setting, remedy = "model.dtype is bfloat16", "model.dtype=float32 (twice the memory)"
    else:
        return None
    return (
        f"{setting}, and this processor ({processor()}; {instruction_set(flags)}) has no units for it: matrix products "
        f"take several times as long as in float32 (6 to 9 times on an AVX2 core); set {remedy}, or use a GPU"
    )


def _cpuinfo(field: str) -> str | None:
    """The first value of a field of /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.partition(":")[0].strip() == field:
                return line.partition(":")[2].strip()
    return None


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout that tracks `folder`, with a + if tracked files were changed.

    None for an installed package (its version identifies the code), and if git is not installed.
    """
    # A package may be installed in a virtual environment inside another project's checkout, which does not track it.
    if _git(folder, "ls-files", "--error-unmatch", ".") is None:
        return None
    head, changed = _git(folder, "rev-parse", "--short=12", "HEAD"), _git(folder, "status", "--porcelain", "-uno")
    return head if not (head and changed) else f"{head}+"


def custom_code(recipe: Mapping[str, Any]) -> dict[str, str | None]:
    """Each class and reward function of your own in a recipe, with the SHA-256 of its file; None if it has no file.

    `recipe` is plain data. Raises RecipeError if one cannot be imported.
    """
    return {name: source_hash(import_object(name, setting)) for setting, name in _references(recipe)}


def changed_code(before: Mapping[str, Any], now: Mapping[str, str | None]) -> list[str]:
    """The names whose file is not the recorded one. Files that were not recorded are left out."""
    return [name for name, sha256 in now.items() if name in before and before[name] != sha256]


def _references(value: Any, setting: str = "") -> Iterator[tuple[str, str]]:
    """Setting and name of each `kind`, and of each item of a list of `functions`, that is the user's own."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _references(inner, f"{setting}.{key}" if setting else str(key))
    elif isinstance(value, list) and setting.endswith("reward.functions"):
        yield from ((setting, name) for name in value if is_reference(name))
    elif setting.endswith(".kind") and is_reference(value):
        yield setting, value


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
