"""How near `stipule plan` comes to a run: python benchmarks/plan_accuracy.py [--only NAME] [--json FILE].

Three recipes, from tiny to medium, on random weights (the bundled base for the first). For each the forecast is made,
then the recipe is trained for a few steps and measured: seconds from its own record (median over steps), memory from
torch's allocator. No row is skipped (beta > 0), since a forecast cannot depend on rewards. `--cpu-seconds` lets both
sides count the seconds that a core worked for this process: for a machine that others use, with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.models.families import family_of, write_llada_config
from stipule.models.loading import save_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.tiny_tokenizer import build_tokenizer
from stipule.plan.forecast import PlanOptions, forecast
from stipule.tasks.countdown import Countdown
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe

COUNTDOWN = {"kind": "countdown", "prompt": "compact", "largest": 20, "target": [1, 60], "train_problems": 64}
CASES: Mapping[str, dict[str, Any]] = {
    "sudoku, 0.8 M, full": {
        "task": {"kind": "sudoku", "prompt": "compact", "train_problems": 64, "test_problems": 8},
        "model": {"path": "tiny/sudoku", "attention": "eager"},
        "sampler": {"gen_length": 16, "steps": 16, "block_length": 16, "temperature": 1.0},
        "pruning": {"temporal": {"cutoff": 0.125}},
        "training": {
            "prompts_per_step": 8,
            "num_generations": 8,
            "num_iterations": 2,
            "rollout_batch_size": 64,
            "micro_batch_size": 64,
        },
    },
    "V 2,000, width 256, full": {
        "shape": {"vocabulary": 2000, "width": 256, "layers": 4},
        "model": {"attention": "eager"},
        "sampler": {"gen_length": 32, "steps": 16, "block_length": 16, "temperature": 1.0},
        "training": {
            "prompts_per_step": 2,
            "num_generations": 6,
            "num_iterations": 2,
            "rollout_batch_size": 12,
            "micro_batch_size": 6,
        },
    },
    "V 8,000, width 256, LoRA": {
        "shape": {"vocabulary": 8000, "width": 256, "layers": 4},
        "model": {"attention": "sdpa", "lora": {"rank": 16, "alpha": 8}},
        "sampler": {"gen_length": 64, "steps": 32, "block_length": 16, "temperature": 1.0},
        "pruning": {"temporal": {"cutoff": 0.05}},
        "estimator": {"kind": "elbo", "num_samples": 2},
        "training": {
            "prompts_per_step": 2,
            "num_generations": 4,
            "num_iterations": 2,
            "rollout_batch_size": 8,
            "micro_batch_size": 4,
        },
    },
}


def random_checkpoint(folder: Path, *, vocabulary: int, width: int, layers: int) -> None:
    """A LLaDA checkpoint of random weights that can read compact Countdown."""
    published = write_llada_config(
        width=width, layers=layers, heads=4, mlp=3 * width, vocabulary=vocabulary, longest=256, mask=1, eos=0, pad=0
    )
    task = parse_recipe({"task": COUNTDOWN}).task
    assert isinstance(task, Countdown)
    vocabulary_of_task = task.vocabulary
    tokenizer = build_tokenizer(
        [*vocabulary_of_task.words, *(f"unused{i}" for i in range(vocabulary - 4 - len(vocabulary_of_task.words)))],
        vocabulary_of_task.pattern,
    )
    family = family_of(published)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = family.model_class(family.read_config(published))
    save_policy(MaskedPolicy(network, tokenizer, published), folder, str(folder))


def recipe_of(case: Mapping[str, Any], folder: Path, steps: int) -> Recipe:
    """The case as a recipe in which no row is skipped."""
    data = {key: value for key, value in case.items() if key != "shape"}
    if "shape" in case:
        random_checkpoint(folder / "model", **case["shape"])
        data = {"task": COUNTDOWN | {"test_problems": 8}, **data}
        data["model"] = {**data["model"], "path": str(folder / "model")}
    data["objective"] = {"kind": "grpo", "beta": 0.01}
    rest = {"steps": steps, "save_every": 10**6, "rollouts_every": 0, "seed": 0}
    return parse_recipe({**data, "training": {**data["training"], **rest}})


def measured_bytes(recipe: Recipe, folder: Path) -> int:
    """Peak bytes of the second step: the bytes at its start, plus the allocator's highest point within it."""
    results: dict[str, Any] = {}

    def watch(event: str, data: Mapping[str, Any]) -> None:
        if event == "step" and data["step"] == 1:
            forget_gradients()
            results["at_start"] = living_bytes()
            results["profile"] = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ).__enter__()
        elif event == "step" and data["step"] == 2:
            results["profile"].__exit__(None, None, None)

    train(recipe, RunFolder.create(folder, dump_recipe(recipe)), watch)
    events = results["profile"].profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    current = peak = 0
    for _, change in changes:
        current += change
        peak = max(peak, current)
    return results["at_start"] + peak


def forget_gradients() -> None:
    """What the next update begins with; the profiler does not see that earlier tensors are freed."""
    for item in gc.get_objects():
        if isinstance(item, torch.nn.Parameter):
            item.grad = None


def living_bytes() -> int:
    """Bytes of all tensors that can be reached."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor) and item.device.type == "cpu":
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measured_seconds(recipe: Recipe, folder: Path) -> float:
    """Median over the steps after the first."""
    train(recipe, RunFolder.create(folder, dump_recipe(recipe)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return median(sum(line[f"time/{part}"] for part in ("rollout", "logps", "update")) for line in lines[1:])


def compare(name: str, steps: int, seconds: bool = True) -> dict[str, float | str]:
    """One case: forecast, then run, then forecast again for the seconds (the machine's speed wanders)."""
    with TemporaryDirectory() as root:
        folder = Path(root)
        recipe = recipe_of(CASES[name], folder, steps)
        ahead = forecast(recipe, PlanOptions(measure=seconds))
        assert ahead.peaks.largest_phase == "update", "the measurement below sees no other peak"
        results: dict[str, float | str] = {"case": name, "bytes_planned": ahead.peaks.peak}
        if seconds:
            results["seconds_measured"] = measured_seconds(recipe, folder / "timed")
            after = forecast(recipe, PlanOptions())
            assert ahead.seconds and after.seconds
            results["seconds_planned"] = (ahead.seconds.step + after.seconds.step) / 2
            results["seconds_ratio"] = results["seconds_planned"] / results["seconds_measured"]
        two = recipe_of(CASES[name], folder / "again", 2)
        results["bytes_measured"] = measured_bytes(two, folder / "counted")
        results["bytes_ratio"] = ahead.peaks.peak / results["bytes_measured"]
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cpu-seconds", action="store_true")
    options = parser.parse_args()
    if options.cpu_seconds:
        time.perf_counter = time.process_time
    logging.getLogger().setLevel(logging.ERROR)
    rows = [compare(name, options.steps) for name in ([options.only] if options.only else CASES)]
    for row in rows:
        print(
            f"{row['case']:26}  memory {row['bytes_planned'] / 2**20:7.1f} of {row['bytes_measured'] / 2**20:7.1f} MiB "
            f"(x {row['bytes_ratio']:.3f})   step {row['seconds_planned']:6.2f} of {row['seconds_measured']:6.2f} s "
            f"(x {row['seconds_ratio']:.2f})"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
