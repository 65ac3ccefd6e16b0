"""Where a number was made: the processor and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def processor() -> str:
    """The processor's name, as the kernel gives it; else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit(place: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout that `place` is tracked in, with a + where tracked files were changed.

    None for an installed package, whose version says it all, and where there is no git.
    """
    # An installed package may lie in a virtual environment inside someone else's checkout, which does not track it.
    if _git(place, "ls-files", "--error-unmatch", ".") is None:
        return None
    head, changed = _git(place, "rev-parse", "--short=12", "HEAD"), _git(place, "status", "--porcelain", "-uno")
    return head if not (head and changed) else f"{head}+"


def _git(place: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(place), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
