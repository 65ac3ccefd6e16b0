"""What a model family is: a stock transformers class made bidirectional, and how its checkpoints are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from stipule.errors import CheckpointError

# The matrices of a Llama-like block: four of attention, three of the MLP.
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# What a Llama-like layer does place by place: all but its keys and values, attention itself, norms and sums.
POSITION_WISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
DIFFUSION = "diffusion"  # the section of config.json (ours) that says what the published fields leave open


def output_embeddings(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits of hidden states where the head is one matrix."""
    return model.get_output_embeddings()(states)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one kind of published checkpoint becomes a stock transformers model, and back."""

    name: str
    model_class: type[PreTrainedModel]
    read_config: Callable[[Mapping[str, Any]], PreTrainedConfig]  # published config.json -> transformers configuration
    lora_targets: Mapping[str, tuple[str, ...]]  # recipe word -> module names
    lora_parameters: tuple[str, ...] = ()  # stacked expert weights, which are parameters and no modules
    lm_head_modules: tuple[str, ...] = ("lm_head",)  # never adapted
    shift_logits: bool = False  # True: position i-1 of the network predicts token i
    supports_kv_cache: bool = True  # layers hand out keys and values, so that a call can take those of an earlier one
    position_wise: tuple[str, ...] = POSITION_WISE  # parts of a layer that can be computed at some places alone
    lm_head: Callable[[PreTrainedModel, Tensor], Tensor] = output_embeddings
    first_position: Callable[[PreTrainedConfig], int] = lambda config: 0  # of the first real token
    mask_token_names: tuple[str, ...] = ()  # the mask token's spelling, where neither config nor tokenizer names one
    unused_tensors: tuple[
        str, ...
    ] = ()  # published tensors (regular expressions) that a masked language model has no use for


def stock_fields(published: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a published `config.json` without those that name code, types or our own section."""
    ours = {"architectures", "auto_map", "model_type", "transformers_version", "torch_dtype", "dtype", DIFFUSION}
    return {key: value for key, value in published.items() if key not in ours}


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with every dropout at 0: the ratio of eq. 4 is 1 only when two passes agree."""
    for name, value in vars(config).copy().items():
        if "dropout" in name and isinstance(value, int | float):
            setattr(config, name, 0.0)
    return config


def require(published: Mapping[str, Any], needed: Mapping[str, Any], what: str) -> None:
    """Raises CheckpointError where a field that is given has another value than the stock class can express.

    A field that is missing, or None where False or None is needed, is as it should be.
    """
    for field, value in needed.items():
        given = published.get(field, value)
        if given != value and not (not value and not given):
            raise CheckpointError(
                f"config.json has {field} = {given!r}; {what}, which needs {value!r}; this variant is not supported "
                "(docs/models.md lists what is)"
            )


def require_fields(published: Mapping[str, Any], fields: tuple[str, ...], what: str) -> None:
    """Raises CheckpointError for sizes that are missing: transformers would fill in those of another model."""
    missing = [field for field in fields if field not in published]
    if missing:
        raise CheckpointError(f"config.json lacks {', '.join(missing)}; {what} carries them; was it edited?")
