"""What this package needs of the libraries under it, said before they fail in words of their own."""

from __future__ import annotations

from importlib.util import find_spec

from stipule.errors import CheckpointError


def check_transformers(found: str) -> None:
    """Raises CheckpointError for a transformers that would silently keep attention causal (before 5.4)."""
    if tuple(int(part) for part in found.split(".")[:2]) < (5, 4):
        raise CheckpointError(
            f"transformers {found} is installed; it ignores is_causal = False, so a diffusion model would quietly be "
            "causal; 5.4 or newer is needed; run: pip install -U 'transformers>=5.4,<6'"
        )


def check_quantiser() -> None:
    """Raises CheckpointError where a 4-bit base is asked for and bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise CheckpointError(
            "model.quantize is nf4, but bitsandbytes is not installed; 4-bit bases need it; run: pip install "
            "'stipule[quant]', or leave model.quantize out and use model.dtype=bfloat16 (16 GB for an 8B model)"
        )
