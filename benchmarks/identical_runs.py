"""Fingerprints of short training runs, which show that a refactor changes no number: python -m benchmarks.identical_runs

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
    """Name -> number of processes and the words after `stipule train`."""
    methods = sorted(p.stem for p in (ROOT / "recipes" / "tiny").glob("*.yaml") if not p.stem.endswith("_base"))
    found: dict[str, tuple[int, list[str]]] = {"quickstart, full, 1": (1, ["quickstart"])}
    for processes in (1, 2):
        found[f"quickstart, {processes}"] = (processes, ["quickstart", *THREE_STEPS])
        found[f"quickstart unpruned, {processes}"] = (processes, ["quickstart", *THREE_STEPS, *UNPRUNED])
        for method in methods:
            found[f"{method}, {processes}"] = (processes, [f"tiny/{method}", *THREE_STEPS])
            if method.endswith("_stp"):
                found[f"{method}, hot, {processes}"] = (processes, [f"tiny/{method}", *THREE_STEPS, HOT])
    return found


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


def run(name: str, processes: int, words: list[str]) -> dict[str, Any]:
    """Trains in a folder that is removed afterwards."""
    launch = [PYTHON, "-m", "stipule"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes > 1:
        launch = [PYTHON, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29531"]
        launch += ["-m", "stipule"]
        environment["ACCELERATE_USE_CPU"] = "true"
    with TemporaryDirectory() as place:
        done = subprocess.run(
            [*launch, "train", *words, "--out", f"{place}/run"], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
        return fingerprint(Path(place) / "run")


def run_all() -> dict[str, Any]:
    """All runs: those on one process two at a time, those on two processes one after the other."""
    wanted = runs()
    single = {name: words for name, (processes, words) in wanted.items() if processes == 1}
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(single, pool.map(lambda item: run(item[0], 1, item[1]), single.items()), strict=True))
    for name, (processes, words) in wanted.items():
        if processes > 1:
            found[name] = run(name, processes, words)
            print(name, found[name]["weights"], flush=True)
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """In words, what is not the same; a key that only one side has is a difference."""
    found = []
    for name in before | after:
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            found.append(f"{name}: only {'after' if one is None else 'before'} the change")
            continue
        if one["weights"] != other["weights"]:
            found.append(f"{name}: weights {one['weights']} before, {other['weights']} after")
        keys = one["metrics"] | other["metrics"]
        found += [f"{name}: {key}" for key in keys if one["metrics"].get(key) != other["metrics"].get(key)]
        if one["alarms"] != other["alarms"]:
            found.append(f"{name}: alarms")
    return found


def _hash(values: Any) -> str:
    return sha256(json.dumps(values).encode()).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file instead of comparing with it")
    arguments = parser.parse_args()
    found = run_all()
    if arguments.write:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} runs written to {KEPT.name}")
        return
    apart = differences(json.loads(KEPT.read_text()), found)
    print("\n".join(apart) or f"all {len(found)} runs have the same weights and metrics")
    sys.exit(bool(apart))


if __name__ == "__main__":
    main()
