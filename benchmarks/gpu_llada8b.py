"""One whole RL step of LLaDA-8B's shape with random weights, for each method with and without STP.

    python benchmarks/gpu_llada8b.py --json llada8b.json            # one 80 GB GPU, bfloat16, LoRA of rank 128
    python benchmarks/gpu_llada8b.py --size tiny                    # the same program on a CPU, in seconds

The recipes are recipes/llada-8b/math_*.yaml; only the weights (random), the prompts (random tokens) and the rewards
(random, so that every group has an advantage) are not real. Reported: seconds by phase, peak memory, model calls,
tokens a second and the fraction of the measured rate of a matrix product, each beside what `stipule plan` counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stipule.config.recipe import load_recipe
from stipule.models.families import write_llada_config
from stipule.models.masked_policy import MaskedPolicy
from stipule.plan.devices import bytes_of
from stipule.plan.dummy_model import dummy_policy, even_anchors, full_length_rollouts, prompts_of, trainable_parameters
from stipule.plan.flops import count_flops
from stipule.plan.memory_simulation import simulate_memory
from stipule.plan.shape import published_config, shape_of
from stipule.plan.speed import matmul_rate
from stipule.rng import make_generator
from stipule.rollouts.schedule import num_anchors
from stipule.training.collect_rollouts import sample_rollouts
from stipule.training.context import RunContext
from stipule.training.rl_step import update_policy
from stipule.training.settings import Recipe

METHODS = [f"{name}{stp}" for name in ("grpo_elbo", "diffu_grpo", "spg") for stp in ("", "_stp")]
TINY_CONFIG = write_llada_config(
    width=64, layers=2, heads=4, mlp=192, vocabulary=512, longest=512, mask=1, eos=0, pad=0
)
TINY = [
    "model.dtype=float32", "model.lora.rank=4", "model.lora.alpha=2", "sampler.gen_length=64", "sampler.steps=32",
    "training.num_generations=3", "training.num_iterations=2",
]  # fmt: skip
PROMPT = {"8b": 200, "tiny": 16}


def one_step(recipe: Recipe, policy: MaskedPolicy, prompt: int) -> dict[str, Any]:
    """Rollout, old and reference log-probabilities and updates of a step, timed by the StepTimer of the loop."""
    device, settings = policy.device, recipe.training
    full = full_length_rollouts(recipe, prompt, padded=False, device=device)
    prompts = prompts_of(full)
    count = num_anchors(recipe.pruning.spatial.ratio, recipe.sampler.gen_length)
    anchors = even_anchors(recipe, len(full), count) if count else None
    optimizer = torch.optim.AdamW(trainable_parameters(policy), lr=recipe.optimizer.learning_rate)
    run = RunContext.single_process(recipe, policy, optimizer)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    with run.timer.measure("rollout"):
        rollouts = sample_rollouts(run, prompts, anchors, 0, "sample")
        run.timer.nfe["rollout"] = int(rollouts.nfe.sum())
    after_rollout = _peak(device)
    reward = torch.rand(len(full), generator=make_generator(0, 0, "rewards"))
    advantage = recipe.advantage(reward, settings.num_generations).to(device)
    update_policy(run, rollouts, advantage, 0)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "seconds_by_phase": dict(run.timer.seconds),
        "calls": dict(run.timer.nfe),
        "tokens_a_second": len(full) * recipe.sampler.gen_length / run.timer.seconds["rollout"],
        "peak_rollout": after_rollout,
        "peak": _peak(device),
    }


def measure(name: str, size: str, device: torch.device, overrides: list[str]) -> dict[str, Any]:
    """A method's step after one to warm up, and the operations counted for it."""
    recipe = load_recipe(f"llada-8b/math_{name}", [*(TINY if size == "tiny" else []), *overrides])
    published = dict(TINY_CONFIG) if size == "tiny" else published_config(recipe.model.path)[0]
    shape = shape_of(published, recipe.model.lora)
    prompt = PROMPT[size]
    flops = count_flops(recipe, shape, prompt)
    peaks = simulate_memory(recipe, published, prompt, padded=False, accelerator=device.type == "cuda")
    policy = dummy_policy(published, recipe.model, device)
    one_step(recipe, policy, prompt)
    results = one_step(recipe, policy, prompt)
    rate = matmul_rate(device, recipe.model.dtype == "bfloat16")
    operations = {
        "rollout": flops.rollout.operations,
        "logps": flops.old_logps.operations + flops.ref_logps.operations,
        "update": flops.update.operations,
    }
    # Operations are counted for rollouts of full length; rows that ended early need fewer.
    done = results["calls"]["rollout"] / flops.rollout.calls
    fractions = {
        phase: operations[phase] * (done if phase == "rollout" else 1) / results["seconds_by_phase"][phase] / rate
        for phase in operations
        if results["seconds_by_phase"][phase] > 0 and operations[phase] > 0
    }
    del policy
    return {
        "method": name,
        **results,
        "planned_calls": {k: p.calls for k, p in flops.phases.items()},
        "planned_peak": peaks.peak,
        "operations": operations,
        "matmul_rate": rate,
        "fraction_of_matmul": fractions,
    }


def table(rows: list[Mapping[str, Any]]) -> str:
    head = ("method", "s", "rollout", "logps", "update", "calls", "tokens/s", "GiB", "planned", "roll", "upd")
    lines = ["  ".join(f"{word:>9}" for word in head)]
    for row in rows:
        seconds, fractions = row["seconds_by_phase"], row["fraction_of_matmul"]
        cells = [
            f"{row['method'][-14:]:>9}", f"{row['seconds']:9.2f}",
            *(f"{seconds[p]:9.2f}" for p in ("rollout", "logps", "update")),
            f"{sum(row['calls'].values()):9,}", f"{row['tokens_a_second']:9,.0f}",
            f"{row['peak'] / 2**30:9.2f}", f"{row['planned_peak'] / 2**30:9.2f}",
            f"{fractions.get('rollout', 0):9.0%}", f"{fractions.get('update', 0):9.0%}",
        ]  # fmt: skip
        lines.append("  ".join(cells))
    return "\n".join(lines)


def largest_batch(device: torch.device, size: str, overrides: list[str]) -> int:
    """The largest rollout batch that fits into the device; the memory of a call is linear in its rows."""
    capacity = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else bytes_of("1GB")
    peaks = []
    for rows in (6, 12):
        wide = [f"training.rollout_batch_size={rows}", "training.micro_batch_size=1", "training.prompts_per_step=4"]
        recipe = load_recipe("llada-8b/math_grpo_elbo_stp", [*(TINY if size == "tiny" else []), *overrides, *wide])
        published = dict(TINY_CONFIG) if size == "tiny" else published_config(recipe.model.path)[0]
        peaks.append(simulate_memory(recipe, published, PROMPT[size], False, True).rollout)
    each = (peaks[1] - peaks[0]) / 6
    return int((0.95 * capacity - (peaks[0] - 6 * each)) // each)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["8b", "tiny"], default="8b")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.size == "8b" and device.type == "cpu":
        parser.error("LLaDA-8B's shape needs a GPU with 80 GB; there is none here; try --size tiny")
    rows = [measure(name, options.size, device, options.set) for name in options.methods]
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "size": options.size,
        "largest_rollout_batch_planned": largest_batch(device, options.size, options.set),
    }
    print(about)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def _peak(device: torch.device) -> int:
    """Bytes; 0 on a CPU, where torch keeps no count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


if __name__ == "__main__":
    main()
