"""The `model.lora` section of a LoraConfig of peft."""

from __future__ import annotations

from typing import Any

from stipule.errors import RecipeError
from stipule.models.adapters import LoRA
from stipule.models.families import Family

# What is read; of the others every one must have peft's default.
READ = ("r", "lora_alpha", "lora_dropout", "target_modules", "task_type", "base_model_name_or_path", "peft_version")


def lora_of(peft_config: Any, family: Family) -> LoRA:
    """The adapters that a `peft.LoraConfig` describes.

    Raises RecipeError for options other than plain LoRA, and for target modules that are not a set which adapters are
    put on here: all matrices of the layers, or those that published runs adapted.
    """
    from peft import LoraConfig

    if not isinstance(peft_config, LoraConfig):
        raise RecipeError(f"peft_config is a {type(peft_config).__name__}; only LoraConfig is offered")
    standard, given = LoraConfig().to_dict(), peft_config.to_dict()
    other = [name for name in given if name not in READ and given[name] != standard.get(name)]
    if other:
        raise RecipeError(
            f"peft_config sets {', '.join(f'{name}={given[name]!r}' for name in other)}; only plain LoRA is offered: "
            "r, lora_alpha, lora_dropout, target_modules; leave the others out"
        )
    return LoRA(
        rank=peft_config.r,
        alpha=peft_config.lora_alpha,
        dropout=peft_config.lora_dropout,
        targets=_targets(peft_config.target_modules, family),
    )


def _targets(modules: Any, family: Family) -> Any:
    if modules is None or modules == "all-linear":
        return "all"
    chosen = {modules} if isinstance(modules, str) else set(modules)
    for name, members in family.lora_targets.items():
        if chosen == set(members):
            return name
    allowed = "; ".join(f"{sorted(members)}" for members in dict.fromkeys(map(tuple, family.lora_targets.values())))
    raise RecipeError(
        f"peft_config.target_modules is {sorted(chosen)}; for a model of family {family.name} it is 'all-linear', or "
        f"one of these lists: {allowed}"
    )
