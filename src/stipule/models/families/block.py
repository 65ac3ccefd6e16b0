"""The block length of a block diffusion model: from the recipe, else from the fields of its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stipule.errors import CheckpointError
from stipule.models.families.family import Family, diffusion_section


def block_length_of(family: Family, published_config: Mapping[str, Any]) -> int | None:
    """Tokens of a block; None for a model of full attention.

    `model.block_length` (in the `diffusion` section) comes before the published fields. Raises CheckpointError for a
    length that is not 1 or more, for a family of full attention with one, and for a block family without one.
    """
    section = diffusion_section(published_config)
    setting = "model.block_length"
    block_length = section.get("block_length")
    if family.block_attention == "never":
        if block_length is not None:
            raise CheckpointError(
                f"{setting} is {block_length}, but models of family {family.name} attend to the whole text; only sdar, "
                f"fast_dllm_v2 and a2d may be block models; leave {setting} out"
            )
        return None
    if block_length is None:
        stated = {field: published_config[field] for field in family.block_length_fields if field in published_config}
        setting, block_length = next(
            ((f"{field} in config.json", value) for field, value in stated.items() if value is not None),
            (setting, None),
        )
    if block_length is None:
        if family.block_attention == "optional":
            return None
        raise CheckpointError(
            f"config.json of this model of family {family.name} does not state its block length "
            f"({' or '.join(family.block_length_fields)}); set {setting} to the length that it was trained with, e.g. "
            f"{setting}=4 (SDAR-Chat's)"
        )
    if not isinstance(block_length, int) or isinstance(block_length, bool) or block_length < 1:
        raise CheckpointError(
            f"{setting} is {block_length!r}; it is the number of tokens of a block and must be 1 or more; set "
            "model.block_length to the length that the checkpoint was trained with, e.g. 4"
        )
    return block_length


def check_attention(family: Family, attention: str) -> None:
    """Raises CheckpointError for a block model with flash attention, which takes no mask of queries x keys."""
    if family.block_length is not None and "flash" in attention:
        raise CheckpointError(
            f"model.attention is {attention}, but this is a block diffusion model (block length "
            f"{family.block_length}); its attention mask is one of queries and keys, which flash attention does not "
            "take; set model.attention=sdpa"
        )
