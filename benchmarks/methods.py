"""Every method's recipe, with and without STP, over several seeds: steps and costs to a solve rate.

    python benchmarks/methods.py                       # all of recipes/tiny, 3 seeds; finished runs are kept
    python benchmarks/methods.py spg spg_stp --seeds 5 --jobs 2

Prints a table and writes it as json beside the runs. One core per run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

METHODS = ("grpo_elbo", "diffu_grpo", "unigrpo", "spg", "coupled_grpo", "wd1", "espo", "trace", "just_grpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=[name for m in METHODS for name in (m, f"{m}_stp")])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--target", type=float, default=0.9, help="greedy solve rate on held-out problems")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every run")
    options = parser.parse_args()
    runs = [(recipe, seed) for seed in range(options.seeds) for recipe in options.recipes]
    with ThreadPoolExecutor(options.jobs) as pool:
        for recipe, seed, problem in pool.map(lambda r: train(*r, options.out, options.set), runs):
            print(f"{recipe} seed {seed}: {problem or 'done'}", file=sys.stderr, flush=True)
    rows = [summary(recipe, options.seeds, options.out, options.target) for recipe in options.recipes]
    (options.out / "methods.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows, options.target))


def train(recipe: str, seed: int, out: Path, overrides: list[str]) -> tuple[str, int, str]:
    path = out / f"{recipe}-{seed}"
    arguments = [sys.executable, "-m", "stipule", "train", f"tiny/{Path(recipe).name}", *overrides, "--seed", str(seed)]
    arguments += ["--out", str(path), *(["--resume"] if path.exists() else [])]
    done = subprocess.run(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    return recipe, seed, done.stderr.strip().splitlines()[-1] if done.returncode else ""


def summary(recipe: str, seeds: int, out: Path, target: float) -> dict[str, Any]:
    results = [curve(out / f"{recipe}-{seed}", target) for seed in range(seeds)]
    return {"recipe": recipe, **{key: [f[key] for f in results] for key in results[0]}}


def curve(run: Path, target: float) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval/solved" in line]
    there = next((line for line in evaluated if line["eval/solved"] >= target * line["eval/total"]), {})
    return {
        "steps": there.get("step"),
        "calls": there.get("nfe/total"),
        "tokens": there.get("nfe_tokens/total"),
        "seconds": there.get("time/total"),
        "last": [evaluated[-1]["eval/solved"], evaluated[-1]["eval/total"]],
        "curve": [[line["step"], line["eval/solved"]] for line in evaluated],
        "anchors": anchor_calls(run),
        "all_calls": lines[-1]["nfe/total"],
        "all_seconds": lines[-1]["time/total"],
        "rollout_calls": sum(line["nfe/rollout"] for line in lines),
    }


def anchor_calls(run: Path) -> int:
    """Forward passes that were spent on the anchor store before the first step."""
    state = max(run.glob("checkpoints/step-*/train_state.json"))
    return json.loads(state.read_text())["pregeneration_calls"]


def table(rows: list[dict[str, Any]], target: float) -> str:
    there = f"to {target:.0%}"
    lines = [
        f"| recipe | steps {there} | model calls {there} (+ anchors) | computed tokens {there} | seconds {there} "
        "| solved at the end |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        calls = each(row["calls"], "{:,}") + (f" (+ {row['anchors'][0]:,})" if row["anchors"][0] else "")
        cells = [each(row["steps"], "{}"), calls, each(row["tokens"], "{:,}"), each(row["seconds"], "{:.0f}")]
        last = ", ".join(f"{solved / total:.1%}" for solved, total in row["last"])
        lines.append(f"| {row['recipe']} | {' | '.join(cells)} | {last} |")
    return "\n".join(lines)


def each(values: list[Any], form: str) -> str:
    reached = [v for v in values if v is not None]
    shown = ", ".join(form.format(v) if v is not None else "-" for v in values)
    middle = f" (median {form.format(statistics.median_low(reached))})" if len(reached) == len(values) > 1 else ""
    return shown + middle


if __name__ == "__main__":
    main()
