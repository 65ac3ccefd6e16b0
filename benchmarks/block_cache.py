"""What the exact cache of a block diffusion model saves: seconds and computed tokens, on random weights.

    python -m benchmarks.block_cache

A Qwen3 of width 512 and 8 layers (V = 512), B 4, prompts of 83 to 100 tokens, L 128, two tokens a forward pass,
float32. Each number of seconds is the faster of two rollouts with the same noise; both kinds must have equal tokens.
"""

from __future__ import annotations

import time

import torch

from stipule.models.families import family_of
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.tiny_tokenizer import build_tokenizer
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.types import Prompts, Rollouts

VOCABULARY, PROMPT_LENGTHS = 512, (100, 97, 90, 83)


def main() -> None:
    """Prints one line for each block length."""
    torch.set_num_threads(1)
    print(
        f"{'block':>5} {'calls':>6} {'seconds':>8} {'cached':>8} {'times':>6} {'tokens':>8} {'cached':>8} {'times':>6}"
    )
    for block_length in (4, 32):
        policy = block_policy(block_length)
        plain = SemiAutoregressiveSampler(
            gen_length=128, steps=64, block_length=block_length, block_schedule="separate", stop_at_eos=False
        )
        cached = SemiAutoregressiveSampler(
            gen_length=128, steps=64, block_length=block_length, block_schedule="separate", stop_at_eos=False,
            cache=CacheConfig(kind="finished_blocks"),
        )  # fmt: skip
        (seconds, tokens, calls, rollouts), (less, fewer, _, others) = (measure(policy, s) for s in (plain, cached))
        assert torch.equal(rollouts.completion_ids, others.completion_ids)
        print(
            f"{block_length:>5} {calls:>6} {seconds:>8.2f} {less:>8.2f} {seconds / less:>6.1f} "
            f"{tokens:>8,} {fewer:>8,} {tokens / fewer:>6.1f}"
        )


def block_policy(block_length: int) -> MaskedPolicy:
    """An SDAR of random weights."""
    config_json = {
        "model_type": "sdar", "vocab_size": VOCABULARY, "hidden_size": 512, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 1536,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
        "block_size": block_length, "mask_token_id": 1, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    family = family_of(config_json)
    config = family.read_config(config_json)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    tokenizer = build_tokenizer([f"w{i}" for i in range(VOCABULARY - 4)], r"w\d+")
    return MaskedPolicy(family.model_class(config), tokenizer, config_json)


def measure(policy: MaskedPolicy, sampler: SemiAutoregressiveSampler) -> tuple[float, int, int, Rollouts]:
    """Seconds, computed tokens and calls of a rollout, and the rollout."""
    generator = torch.Generator().manual_seed(0)
    rows, width = len(PROMPT_LENGTHS), max(PROMPT_LENGTHS)
    mask = torch.arange(width) >= width - torch.tensor(PROMPT_LENGTHS)[:, None]
    prompts = Prompts(torch.randint(4, VOCABULARY, (rows, width), generator=generator).masked_fill(~mask, 0), mask)
    noise = sampler.sample_noise(rows, generator)
    widths: list[int] = []
    hook = policy.unwrapped_model.base_model.register_forward_pre_hook(
        lambda module, args, named: widths.append(named["input_ids"].numel()), with_kwargs=True
    )
    seconds = []
    for _ in range(2):
        widths.clear()
        started = time.perf_counter()
        rollouts = sampler(policy, prompts, noise)
        seconds.append(time.perf_counter() - started)
    hook.remove()
    return min(seconds), sum(widths), len(widths), rollouts


if __name__ == "__main__":
    main()
