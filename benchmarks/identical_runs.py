"""Fingerprints of short training runs, to show that a refactor changes no number.

Every method of `recipes/tiny` trains for 3 RL steps, with and without STP, on 1 and 2 processes; the quickstart trains
in full on 1 process and for 3 steps on 2. Kept are a hash of the final weights and one of each logged metric.

    python -m benchmarks.identical_runs --write    before the change: writes benchmarks/identical_runs.json
    python -m benchmarks.identical_runs            after it, on the same machine: compares with that file

Floating-point results depend on the processor, so compare only what one machine has computed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_suffix(".json")
PYTHON = sys.executable
# Wall time and memory differ between any two runs.
MEASURED = ("seconds/", "time/", "memory/")
THREE_STEPS = ("training.steps=3", "training.rollouts_every=0")
# With pruning the groups of the untrained base are alike at temperature 1, so that three steps update nothing.
HOT = "sampler.temperature=2.5"
UNPRUNED = ("pruning.spatial.ratio=0", "pruning.temporal.cutoff=0")


def runs() -> dict[str, tuple[int, list[str]]]:
    """Name -> number of processes and the arguments after `stipule train`."""
    methods = sorted(p.stem for p in (ROOT / "recipes" / "tiny").glob("*.yaml") if not p.stem.endswith("_base"))
    results: dict[str, tuple[int, list[str]]] = {"quickstart, full, 1": (1, ["quickstart"])}
    for processes in (1, 2):
        results[f"quickstart, {processes}"] = (processes, ["quickstart", *THREE_STEPS])
        results[f"quickstart unpruned, {processes}"] = (processes, ["quickstart", *THREE_STEPS, *UNPRUNED])
        for method in methods:
            results[f"{method}, {processes}"] = (processes, [f"tiny/{method}", *THREE_STEPS])
            if method.endswith("_stp"):
                results[f"{method}, hot, {processes}"] = (processes, [f"tiny/{method}", *THREE_STEPS, HOT])
    return results


def fingerprint(folder: Path) -> dict[str, Any]:
    """Hashes of a finished run: of its last checkpoint's weights, and of the values of each metric over the steps."""
    weights = sha256()
    with safe_open(max(folder.glob("checkpoints/step-*")) / "model" / "model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            weights.update(name.encode())
            weights.update(file.get_tensor(name).contiguous().numpy().tobytes())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = sorted({key for line in lines for key in line if not key.startswith(MEASURED) and key != "alarms"})
    values = {key: _hash([line.get(key) for line in lines]) for key in keys}
    alarms = [[[event["value"], event["limit"]] for event in line.get("alarms", [])] for line in lines]
    return {"weights": weights.hexdigest()[:16], "metrics": values, "alarms": _hash(alarms)}


def run(name: str, processes: int, arguments: list[str]) -> dict[str, Any]:
    """Trains in a folder that is removed afterwards."""
    launch = [PYTHON, "-m", "stipule"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes > 1:
        launch = [PYTHON, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29531"]
        launch += ["-m", "stipule"]
        environment["ACCELERATE_USE_CPU"] = "true"
    with TemporaryDirectory() as root:
        done = subprocess.run(
            [*launch, "train", *arguments, "--out", f"{root}/run"], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
        return fingerprint(Path(root) / "run")


def run_all() -> dict[str, Any]:
    """All runs: those on one process two at a time, those on two processes one after the other."""
    wanted = runs()
    single = {name: arguments for name, (processes, arguments) in wanted.items() if processes == 1}
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(single, pool.map(lambda item: run(item[0], 1, item[1]), single.items()), strict=True))
    for name, (processes, arguments) in wanted.items():
        if processes > 1:
            results[name] = run(name, processes, arguments)
            print(name, results[name]["weights"], flush=True)
    return results


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line per difference; a key that only one side has is a difference."""
    results = []
    for name in before | after:
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            results.append(f"{name}: only {'after' if one is None else 'before'} the change")
            continue
        if one["weights"] != other["weights"]:
            results.append(f"{name}: weights {one['weights']} before, {other['weights']} after")
        keys = one["metrics"] | other["metrics"]
        results += [f"{name}: {key}" for key in keys if one["metrics"].get(key) != other["metrics"].get(key)]
        if one["alarms"] != other["alarms"]:
            results.append(f"{name}: alarms")
    return results


def _hash(values: Any) -> str:
    return sha256(json.dumps(values).encode()).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file instead of comparing with it")
    arguments = parser.parse_args()
    results = run_all()
    if arguments.write:
        KEPT.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{len(results)} runs written to {KEPT.name}")
        return
    apart = differences(json.loads(KEPT.read_text()), results)
    print("\n".join(apart) or f"all {len(results)} runs have the same weights and metrics")
    sys.exit(bool(apart))


if __name__ == "__main__":
    main()
