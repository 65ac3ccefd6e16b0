"""Rollouts against the published decoder on the same weights: python -m benchmarks.rollouts [--quick]"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch

from benchmarks.reference import Decoder
from benchmarks.subjects import as_anchors, build, ends, prompts
from benchmarks.timing import alternate, table, write
from stipule.rollouts.pruning import Anchors, FixedCutoff
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.rollouts.schedule import Cutoff, num_anchors, unmask_schedule

# size, rows, P, L, N, block
SHAPES = (
    ("tiny", 16, 16, 64, 32, 16),
    ("llada-like", 4, 32, 64, 32, 16),
    ("V = 32,000", 4, 16, 32, 16, 8),
    ("V = 32,000", 4, 32, 64, 32, 8),  # blocks of L/8, as LLaDA's 32 of 256
)


def against_reference(size: str, rows: int, width: int, length: int, steps: int, block: int) -> dict[str, Any]:
    """The same number of calls, no early end, temperature 0.9."""
    policy = build(size)
    batch = prompts(policy, rows, width)
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=steps, block_length=block, temperature=0.9, stop_at_eos=False
    )
    noise = sampler.sample_noise(rows, torch.Generator().manual_seed(0))
    decoder = Decoder(length, steps, block, 0.9)
    return alternate(
        policy, {"reference": lambda: decoder(policy, batch), "stipule": lambda: sampler(policy, batch, noise)}
    )


def stop_at_eos_comparison() -> dict[str, Any]:
    """32 rollouts that end at L/2 on average, 8 at once: when one ends, the next takes its slot."""
    rows, at_once, length = 32, 8, 64
    policy = build("llada-like")
    batch, planted = prompts(policy, rows, 16), as_anchors(ends(policy, rows, length)[shuffled(rows)])
    full = SemiAutoregressiveSampler(
        gen_length=length, steps=length // 2, block_length=8, temperature=0.9, stop_at_eos=False
    )
    noise = full.sample_noise(rows, torch.Generator().manual_seed(0))
    early = replace(full, stop_at_eos=True)
    return alternate(
        policy,
        {
            "to the last token": lambda: full(policy, batch, noise, planted, FixedCutoff(), at_once),
            "stop at eos": lambda: early(policy, batch, noise, planted, FixedCutoff(), at_once),
        },
    )


def shuffled(rows: int) -> torch.Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(3))


def pruned() -> dict[str, Any]:
    """STP of table 8, gamma = t_cutoff = 0.05, with L/N = 2 as in the paper."""
    rows, length, steps, block = 2, 128, 64, 32
    policy = build("llada-like")
    batch = prompts(policy, rows, 32)
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=steps, block_length=block, temperature=0.9, stop_at_eos=False
    )
    noise = sampler.sample_noise(rows, torch.Generator().manual_seed(0))
    fixed = torch.rand(rows, length, generator=torch.Generator().manual_seed(2)).argsort(1) < num_anchors(0.05, length)
    anchors = Anchors(torch.full((rows, length), 7), fixed)
    cut = FixedCutoff(cutoff=0.05)
    masks = tuple((~fixed[0]).unflatten(0, (-1, block)).sum(1).tolist())
    results = alternate(
        policy,
        {
            "unpruned": lambda: sampler(policy, batch, noise),
            "STP (0.05, 0.05)": lambda: sampler(policy, batch, noise, anchors, cut),
        },
    )
    results["STP (0.05, 0.05)"]["planned_calls"] = unmask_schedule(
        masks, length, steps, block, Cutoff(0.05, "global")
    ).nfe
    return results


def queue() -> dict[str, Any]:
    """24 prompts of three lengths, 4 at once, rollouts that end anywhere: batches in turn against one queue."""
    rows, length, at_once = 24, 32, 4
    policy = build("llada-like")
    batch = prompts(policy, rows, 48)
    lengths = torch.tensor([8, 16, 48]).repeat(rows // 3)
    mask = torch.arange(48) >= 48 - lengths[:, None]
    batch = type(batch)(batch.prompt_ids.masked_fill(~mask, policy.pad_id), mask)
    planted = as_anchors(ends(policy, rows, length)[shuffled(rows)])
    sampler = SemiAutoregressiveSampler(gen_length=length, steps=length // 2, block_length=8, temperature=0.9)
    noise = sampler.sample_noise(rows, torch.Generator().manual_seed(0))

    def in_turn() -> None:
        for start in range(0, rows, at_once):
            rows_slice = slice(start, start + at_once)
            fixed = Anchors(planted.token_ids[rows_slice], planted.fixed_mask[rows_slice])
            sampler(
                policy,
                batch[rows_slice],
                type(noise)(noise.uniform[:, rows_slice], noise.position_noise[rows_slice]),
                fixed,
            )

    return alternate(
        policy,
        {
            "batches in turn": in_turn,
            "queue, by prompt length": lambda: sampler(policy, batch, noise, planted, FixedCutoff(), at_once),
        },
        3,
    )


def varied() -> dict[str, Any]:
    """One setting changed at a time, at the tiny size."""
    results = {}
    policy = build("tiny")
    for name, (rows, length, steps, block, gamma, cutoff) in {
        "base: B 16, L 64, N 32": (16, 64, 32, 16, 0.0, 0.0),
        "B 4": (4, 64, 32, 16, 0.0, 0.0),
        "L 128, N 64": (16, 128, 64, 16, 0.0, 0.0),
        "N 64": (16, 64, 64, 16, 0.0, 0.0),
        "gamma 0.1": (16, 64, 32, 16, 0.1, 0.0),
        "t_cutoff 0.1": (16, 64, 32, 16, 0.0, 0.1),
    }.items():
        batch = prompts(policy, rows, 16)
        sampler = SemiAutoregressiveSampler(
            gen_length=length, steps=steps, block_length=block, temperature=0.9, stop_at_eos=False
        )
        noise = sampler.sample_noise(rows, torch.Generator().manual_seed(0))
        order = torch.rand(1, length, generator=torch.Generator().manual_seed(2)).argsort(1).expand(rows, -1)
        anchors = Anchors(torch.full((rows, length), 7), order < num_anchors(gamma, length))
        decoder = Decoder(length, steps, block, 0.9)
        results[name] = alternate(
            policy,
            {
                "reference": lambda decoder=decoder, batch=batch: decoder(policy, batch),
                "stipule": lambda s=sampler, a=batch, n=noise, p=anchors, c=cutoff: s(
                    policy, a, n, p, FixedCutoff(cutoff=c)
                ),
            },
        )
    return results


def main(quick: bool = False) -> None:
    results: dict[str, Any] = {}
    for size, rows, width, length, steps, block in SHAPES:
        title = f"Rollout, {size}: {rows} rows, P {width}, L {length}, N {steps}, block {block}"
        results[title] = against_reference(size, rows, width, length, steps, block)
        print(table(title, results[title]), flush=True)
    comparisons = {
        "Stop at eos, llada-like: 32 rows, 8 at once, mean length L/2": stop_at_eos_comparison,
        "STP, llada-like": pruned,
    }
    if not quick:
        comparisons["Queue, llada-like: 24 rows, 4 at once"] = queue
    for title, compare in comparisons.items():
        results[title] = compare()
        print(table(title, results[title]), flush=True)
    if not quick:
        for name, one in varied().items():
            results[f"tiny, {name}"] = one
            print(table(f"Rollout, tiny, {name}", one), flush=True)
    write("rollouts", results)


if __name__ == "__main__":
    main("--quick" in sys.argv)
