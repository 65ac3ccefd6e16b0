"""The models, prompts and planted ends that the benchmarks share: random weights, sizes that differ in kind."""

from __future__ import annotations

import torch
from torch import Tensor

from stipule.models.families import family_of, write_llada_config
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.tiny_tokenizer import build_tokenizer
from stipule.rollouts.pruning import Anchors
from stipule.types import Prompts

# Share of the head in a model's multiplications: tiny 5 %, LLaDA-like 14 % (LLaDA-8B: 7 %), vocabulary 84 %.
SIZES = {
    "tiny": {"vocabulary": 64, "width": 64, "layers": 2, "heads": 2},
    "llada-like": {"vocabulary": 2000, "width": 256, "layers": 4, "heads": 4},
    "V = 32,000": {"vocabulary": 32000, "width": 128, "layers": 4, "heads": 4},
}


def build(size: str, lora: int = 0, seed: int = 0, **changed: int) -> MaskedPolicy:
    """A policy of a size, with adapters of rank `lora` if that is above 0, else all weights trained."""
    sizes = SIZES[size] | changed
    tokenizer = build_tokenizer([f"w{i}" for i in range(sizes["vocabulary"] - 4)], r"w\d+")
    published = write_llada_config(
        width=sizes["width"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        mlp=sizes["width"] * 43 // 16,
        vocabulary=sizes["vocabulary"],
        longest=4096,
        mask=tokenizer.mask_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
    )
    family = family_of(published)
    torch.manual_seed(seed)
    config = family.read_config(published)
    config._attn_implementation = "sdpa"
    policy = MaskedPolicy(family.model_class(config), tokenizer, published)
    if lora:
        from peft import LoraConfig, get_peft_model

        names = list(family.lora_targets["all"])
        adapted = get_peft_model(policy.unwrapped_model, LoraConfig(r=lora, lora_alpha=lora, target_modules=names))
        policy.model = adapted.eval()
    return policy


def prompts(policy: MaskedPolicy, rows: int, width: int) -> Prompts:
    """Random prompts of one length: the published code knows no padding mask."""
    tokens = torch.randint(4, policy.vocab_size, (rows, width), generator=torch.Generator().manual_seed(1))
    return Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool))


def ends(policy: MaskedPolicy, rows: int, length: int) -> Tensor:
    """An end-of-text planted in every row, at places spread evenly: rollouts of mean length L/2. Else -1."""
    places = ((torch.arange(rows) + 0.5) / rows * length).long()
    return torch.full((rows, length), -1).scatter(1, places[:, None], policy.eos_id)


def as_anchors(planted: Tensor) -> Anchors:
    return Anchors(planted.clamp(min=0), planted >= 0)
