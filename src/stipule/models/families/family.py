"""A model family: a stock transformers class made bidirectional, and how its checkpoints are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from stipule.errors import CheckpointError

# The matrices of a Llama-like block: four of attention, three of the MLP.
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The modules of a Llama-like layer whose output at a position depends only on their input at that position. Keys and
# values act on each position too, but attention reads them everywhere.
POSITION_WISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
DIFFUSION = "diffusion"  # our section of config.json, for what the published fields do not say
DIFFUSION_KEYS = ("family", "shift_logits", "mask_token_id", "eos_token_id", "block_length")


def output_embeddings(model: PreTrainedModel, hidden_states: Tensor) -> Tensor:
    """Logits of hidden states if the LM head is one matrix."""
    return model.get_output_embeddings()(hidden_states)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a kind of published checkpoint is read as a stock transformers model."""

    name: str
    model_class: type[PreTrainedModel]
    read_config: Callable[[Mapping[str, Any]], PreTrainedConfig]  # published config.json -> transformers configuration
    lora_targets: Mapping[str, tuple[str, ...]]  # value of model.lora.targets -> module names
    lora_parameters: tuple[str, ...] = ()  # stacked expert weights, which are parameters, not modules
    lm_head_modules: tuple[str, ...] = ("lm_head",)  # without adapters
    shift_logits: bool = False  # True: position i-1 of the network predicts token i
    # Block diffusion: attention is bidirectional inside a block of this many tokens and causal between blocks. None:
    # every token attends to every other one.
    block_length: int | None = None
    block_attention: Literal["never", "optional", "always"] = "never"  # whether its models are block models
    block_length_fields: tuple[str, ...] = ()  # fields of the published config.json that state the block length
    supports_kv_cache: bool = True  # whether layers return keys and values, so that a later forward pass can use them
    position_wise: tuple[str, ...] = POSITION_WISE  # modules that can be computed at some positions only
    lm_head: Callable[[PreTrainedModel, Tensor], Tensor] = output_embeddings
    first_position: Callable[[PreTrainedConfig], int] = lambda config: 0  # position id of the first real token
    mask_token_names: tuple[str, ...] = ()  # of the mask token, if config and tokenizer do not name it
    unused_tensors: tuple[str, ...] = ()  # published tensors (regular expressions) that the network does not use


def diffusion_section(published_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `diffusion` section of a `config.json`, or of a `stipule.json` beside an adapter; empty if there is none.

    Raises CheckpointError for a key that is not in DIFFUSION_KEYS.
    """
    section = published_config.get(DIFFUSION) or {}
    unknown = sorted(set(section) - set(DIFFUSION_KEYS))
    if unknown:
        raise CheckpointError(
            f"the section `{DIFFUSION}` of config.json (of stipule.json for an adapter) has {', '.join(unknown)}; "
            f"allowed are {', '.join(DIFFUSION_KEYS)}; rename or remove the key there (the earlier key `shift` is now "
            "`shift_logits`)"
        )
    return section


def stock_fields(published_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a published `config.json` without those for code, class names, dtypes and our own section."""
    excluded = {"architectures", "auto_map", "model_type", "transformers_version", "torch_dtype", "dtype", DIFFUSION}
    return {key: value for key, value in published_config.items() if key not in excluded}


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with every dropout at 0: the ratio of eq. 4 is 1 only when two passes agree."""
    for name, value in vars(config).copy().items():
        if "dropout" in name and isinstance(value, int | float):
            setattr(config, name, 0.0)
    return config


def max_positions(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest sequence that the configuration states; None if it states none.

    Scaled rotary embeddings (YaRN) reach their factor times the length of the original ones.
    """
    stated = getattr(config, "max_position_embeddings", None)
    if not isinstance(stated, int) or stated < 1:
        return None
    rope = getattr(config, "rope_parameters", None)
    rope = rope if isinstance(rope, Mapping) else {}
    scaled = (rope.get("factor") or 1) * (rope.get("original_max_position_embeddings") or 0)
    return max(stated, int(scaled))


def require(published_config: Mapping[str, Any], needed: Mapping[str, Any], context: str) -> None:
    """Raises CheckpointError if a field has a value that the stock class cannot express.

    A missing field is accepted, and so is None if False or None is needed. `context` starts the reason in the message.
    """
    for field, value in needed.items():
        given = published_config.get(field, value)
        if given != value and not (not value and not given):
            raise CheckpointError(
                f"config.json has {field} = {given!r}; {context}, which needs {value!r}; this variant is not "
                "supported; use a checkpoint that docs/models.md lists"
            )


def require_fields(published_config: Mapping[str, Any], fields: tuple[str, ...], checkpoint: str) -> None:
    """Raises CheckpointError for missing sizes: transformers would use the sizes of another model."""
    missing = [field for field in fields if field not in published_config]
    if missing:
        raise CheckpointError(
            f"config.json lacks {', '.join(missing)}; {checkpoint} needs these fields; copy config.json from the "
            "published model"
        )
