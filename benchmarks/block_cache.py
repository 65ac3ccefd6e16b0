"""What the exact cache of a block diffusion model saves: seconds and computed tokens, on random weights.

    python -m benchmarks.block_cache

Float32, one thread, two tokens a forward pass. Each number of seconds is the faster of two rollouts with the same
noise; with and without the cache tokens must be equal. The last line of each size is a LLaDA, whose tokens attend to
all others, so that it has no exact cache.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from stipule.models.families import family_of, write_llada_config, write_sdar_config
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.tiny_tokenizer import build_tokenizer
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.types import Prompts, Rollouts

PROMPT_LENGTHS = (100, 97, 90, 83)
# vocabulary, width, layers, heads, mlp; L; blocks
CASES = (((512, 512, 8, 8, 1536), 128, (4, 32)), ((2000, 256, 4, 4, 688), 256, (4, 16, 32)))


def main() -> None:
    """Prints one line for each model and block length."""
    torch.set_num_threads(1)
    print(
        f"{'V':>5} {'L':>4} {'block':>5} {'calls':>6} {'seconds':>8} {'cached':>8} {'times':>6} "
        f"{'tokens':>8} {'cached':>8} {'times':>6}"
    )
    for sizes, length, block_lengths in CASES:
        for block_length in block_lengths:
            policy = random_policy(sizes, block_length)
            plain = SemiAutoregressiveSampler(
                gen_length=length,
                steps=length // 2,
                block_length=block_length,
                block_schedule="separate",
                stop_at_eos=False,
            )
            cached = replace(plain, cache=CacheConfig(kind="finished_blocks"))
            (seconds, tokens, calls, rollouts), (less, fewer, _, others) = (measure(policy, s) for s in (plain, cached))
            assert torch.equal(rollouts.completion_ids, others.completion_ids)
            print(
                f"{sizes[0]:>5} {length:>4} {block_length:>5} {calls:>6} {seconds:>8.2f} {less:>8.2f} "
                f"{seconds / less:>6.1f} {tokens:>8,} {fewer:>8,} {tokens / fewer:>6.1f}"
            )
        full = SemiAutoregressiveSampler(gen_length=length, steps=length // 2, block_length=32, stop_at_eos=False)
        seconds, tokens, calls, _ = measure(random_policy(sizes, None), full)
        print(f"{sizes[0]:>5} {length:>4} {'full':>5} {calls:>6} {seconds:>8.2f} {'-':>8} {'-':>6} {tokens:>8,}")


def random_policy(sizes: tuple[int, int, int, int, int], block_length: int | None) -> MaskedPolicy:
    """An SDAR of random weights; a LLaDA if there are no blocks."""
    vocabulary, width, layers, heads, mlp = sizes
    fields = {"width": width, "layers": layers, "heads": heads, "mlp": mlp, "vocabulary": vocabulary}
    ids = {"longest": 4096, "mask": 1, "eos": 0, "pad": 0}
    if block_length is None:
        config_json = write_llada_config(**fields, **ids)
    else:
        config_json = write_sdar_config(**fields, **ids, block_length=block_length)
    family = family_of(config_json)
    config = family.read_config(config_json)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    tokenizer = build_tokenizer([f"w{i}" for i in range(vocabulary - 4)], r"w\d+")
    return MaskedPolicy(family.model_class(config), tokenizer, config_json)


def measure(policy: MaskedPolicy, sampler: SemiAutoregressiveSampler) -> tuple[float, int, int, Rollouts]:
    """Seconds, computed tokens and calls of a rollout, and the rollout."""
    generator = torch.Generator().manual_seed(0)
    rows, width = len(PROMPT_LENGTHS), max(PROMPT_LENGTHS)
    mask = torch.arange(width) >= width - torch.tensor(PROMPT_LENGTHS)[:, None]
    prompts = Prompts(
        torch.randint(4, policy.vocab_size, (rows, width), generator=generator).masked_fill(~mask, 0), mask
    )
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
