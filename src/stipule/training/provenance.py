"""Where a result was computed: the processor, and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def processor() -> str:
    """The processor's name from /proc/cpuinfo, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout that tracks `folder`, with a + if tracked files were changed.

    None for an installed package (its version identifies the code), and if git is not installed.
    """
    # A package may be installed in a virtual environment inside another project's checkout, which does not track it.
    if _git(folder, "ls-files", "--error-unmatch", ".") is None:
        return None
    head, changed = _git(folder, "rev-parse", "--short=12", "HEAD"), _git(folder, "status", "--porcelain", "-uno")
    return head if not (head and changed) else f"{head}+"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
