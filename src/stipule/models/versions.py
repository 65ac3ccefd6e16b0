"""Checks the installed versions of libraries, so that a missing one is reported with what to install."""

from __future__ import annotations

from importlib.util import find_spec

from stipule.errors import CheckpointError


def check_transformers(installed: str) -> None:
    """Raises CheckpointError for a transformers before 5.4, which keeps attention causal without a warning."""
    if tuple(int(number) for number in installed.split(".")[:2]) < (5, 4):
        raise CheckpointError(
            f"transformers {installed} is installed; it ignores is_causal = False, so attention would be causal "
            "without a warning; 5.4 or newer is needed; run: pip install -U 'transformers>=5.4,<6'"
        )


def check_quantiser() -> None:
    """Raises CheckpointError if bitsandbytes, which a 4-bit base needs, is not installed."""
    if find_spec("bitsandbytes") is None:
        raise CheckpointError(
            "model.quantize is nf4, but bitsandbytes is not installed; 4-bit weights need it; run: pip install "
            "'stipule[quant]', or leave model.quantize out and set model.dtype=bfloat16 (16 GB for an 8B model)"
        )
