"""Cost against L, B, V and K, measured and predicted, and two processes against one: python -m benchmarks.scaling"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.rl_step import finished
from benchmarks.subjects import SIZES, build, prompts
from benchmarks.timing import within, write
from stipule.estimators.elbo import Elbo
from stipule.estimators.token_logps import estimate_logps
from stipule.rng import make_generator
from stipule.rollouts.sampler import SemiAutoregressiveSampler

BASE = {"B": 4, "L": 64, "V": 2000, "K": 2}
VARIED = {"L": (32, 64, 128), "B": (2, 4, 8), "V": (1000, 2000, 8000, 32000), "K": (1, 2, 4)}
PROMPT = 16
REPEATS = 5


def multiplications(sizes: dict[str, int], positions: int, width: int, headed: int) -> float:
    """Of a forward of `positions` tokens in rows of `width`, `headed` of which meet the head."""
    d, layers = sizes["width"], sizes["layers"]
    keys_and_values, by_position = 2 * d * d, 2 * d * d + 3 * d * (d * 43 // 16)
    attention = 2 * width * d
    last = headed * by_position  # the last layer computes these only for tokens that meet the head
    backbone = positions * (layers * (keys_and_values + attention) + (layers - 1) * by_position) + last
    return backbone + headed * d * sizes["vocabulary"]


def case(rows: int, length: int, vocabulary: int, samples: int) -> tuple[dict[str, Callable[[], object]], list[float]]:
    """A rollout of 16 calls and an update on its rollouts, and the multiplications of both."""
    sizes = SIZES["llada-like"] | {"vocabulary": vocabulary}
    policy = build("llada-like", lora=8, vocabulary=vocabulary)
    batch = prompts(policy, rows, PROMPT)
    block, steps = length // 4, 16
    sampler = SemiAutoregressiveSampler(
        gen_length=length, steps=steps, block_length=block, temperature=0.9, stop_at_eos=False
    )
    noise = sampler.sample_noise(rows, torch.Generator().manual_seed(0))
    tokens = torch.randint(4, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    rollouts = finished(policy, batch, tokens)
    estimator = Elbo(num_samples=samples, masks="exact", timestep_sampling="stratified")
    (mask_samples,) = estimator.sample_masks(rollouts, 1, make_generator(0, 0, "views"))
    width = PROMPT + length
    windows = rows * steps * (block + length // steps) / 2
    rollout_flops = multiplications(sizes, rows * width * steps, width, int(windows))
    # An update is a forward and a backward: activations' gradients through frozen matrices cost as much again.
    update_flops = 2 * multiplications(sizes, samples * rows * width, width, int(mask_samples.masked.sum()))

    def update() -> None:
        estimate_logps(policy, rollouts, mask_samples, estimator, torch.ones(rows)).sum().backward()
        policy.model.zero_grad()

    return {"rollout": lambda: sampler(policy, batch, noise), "update": update}, [rollout_flops, update_flops]


def arithmetic() -> list[dict[str, Any]]:
    """One setting varied at a time; seconds relative to the smallest, over multiplications relative to it."""
    lines = []
    for name, values in VARIED.items():
        cases = [case(*(BASE | {name: value}).values()) for value in values]
        for index, part in enumerate(("rollout", "update")):
            if name == "K" and part == "rollout":
                continue
            taken: list[list[float]] = [[] for _ in values]
            for turn in range(REPEATS + 1):
                for number, (sides, _) in enumerate(cases):
                    started = time.perf_counter()
                    sides[part]()
                    if turn:
                        taken[number].append(time.perf_counter() - started)
            measured = [statistics.median(t) for t in taken]
            predicted = [counts[index] for _, counts in cases]
            ratios = within(predicted, measured)
            for value, seconds, count, ratio in zip(values, measured, predicted, ratios, strict=True):
                lines.append(
                    {"part": part, "varied": name, "value": value, "seconds": seconds, "multiplications": count}
                )
                lines[-1]["measured_over_predicted"] = ratio
                print(f"| {part} | {name} = {value:,} | {seconds:.3f} | {count / 1e9:.2f} | {ratio:.2f} |", flush=True)
    return lines


TRAINED = {
    "task.train_problems": 64,
    "model.attention": "eager",
    "pruning.spatial.ratio": 0,
    "training.steps": 6,
    "training.prompts_per_step": 8,
    "training.save_every": 100,
    "training.micro_batch_size": 16,
    "training.rollouts_every": 0,
    "objective.beta": 0.04,
}


def processes() -> dict[str, float]:
    """Seconds of a step of `quickstart` with one process and with two, one core each, on the same global batch."""
    results: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as root:
        for turn in range(3):
            for world in results:
                out = Path(root) / f"{turn}-{world}"
                launch(world, out)
                lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
                steps = [b["time/total"] - a["time/total"] for a, b in pairwise(lines[1:])]
                results[world].append(statistics.median(steps))
    one, two = statistics.median(results[1]), statistics.median(results[2])
    ratios = [a / b for a, b in zip(*results.values(), strict=True)]
    print(
        f"\n1 process {one:.3f} s a step, 2 processes {two:.3f} s: {statistics.median(ratios):.2f} times the throughput"
    )
    return {"one": one, "two": two, "throughput": statistics.median(ratios)}


def launch(world: int, out: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    overrides = [f"{key}={value}" for key, value in TRAINED.items()]
    command = [sys.executable, "-m", "stipule", "train", "quickstart", *overrides, "--out", str(out)]
    ranks = []
    for rank in range(world):
        joined = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        joined |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        named = {key: str(value) for key, value in joined.items()} if world > 1 else {}
        settings = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | named
        ranks.append(subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL))
    assert not any(process.wait() for process in ranks)


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Seconds against multiplications, both relative to the smallest of their row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    for axis, part in zip(figure.subplots(1, 2, sharey=True), ("rollout", "update"), strict=True):
        for name in VARIED:
            mine = [line for line in lines if line["part"] == part and line["varied"] == name]
            if mine:
                base = mine[0]
                across = [line["multiplications"] / base["multiplications"] for line in mine]
                axis.plot(across, [line["seconds"] / base["seconds"] for line in mine], "o-", label=name)
        ends = axis.get_xlim()
        axis.plot(ends, ends, color="grey", linewidth=0.8)  # as the arithmetic says
        axis.set(title=part, xlabel="multiplications, relative to the fewest", xscale="log", yscale="log")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_ticks([1, 2, 4], ["1", "2", "4"])
            scale.set_ticks([], minor=True)
        axis.legend()
    figure.supylabel("seconds, relative")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-processes", action="store_true")
    options = parser.parse_args()
    print("| | | seconds | 10^9 multiplications | measured / predicted |\n" + "|---" * 5 + "|")
    lines = arithmetic()
    plot(lines, Path("runs/bench/scaling.png"))
    write("scaling", {"arithmetic": lines, "processes": {} if options.skip_processes else processes()})


if __name__ == "__main__":
    main()
