"""The runs behind a table: each row x seed is `stipule train` and `stipule eval`, a process and a core each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stipule.config.recipe import load_recipe
from stipule.errors import StipuleError
from stipule.reproduce.paper import ROWS
from stipule.training.checkpoint import newest_checkpoint, read_train_state


@dataclass(frozen=True)
class Outcome:
    """One trained (or untrained) model: held-out problems by key, what training it took, its variance by step."""

    correct: dict[str, bool]
    calls: int  # rows x model calls of training, without those that made the anchors
    anchor_calls: int
    seconds: float
    variance: Mapping[int, float]  # of the estimate per counted token, at the RL steps that logged one
    sum_variance: Mapping[int, float]  # of the sum over the counted tokens, at the same steps
    environment: Mapping[str, Any]  # where it was made
    evaluation_seconds: float

    @property
    def solved(self) -> int:
        return sum(self.correct.values())


def recipe_of(world: str) -> str:
    """The recipe of a world: a shipped one by name, or a YAML file."""
    return world if world.endswith((".yaml", ".yml")) else f"reproduce/{world}"


def place_of(out: Path, world: str, row: str, seed: int) -> Path:
    """Where a run lies; the untrained base has no seed."""
    return out / Path(world).stem / (row if ROWS[row].changes is None else f"{row}-{seed}")


def commands(out: Path, world: str, row: str, seed: int) -> list[list[str]]:
    """The words after `stipule` that make a row: what anyone can type."""
    place = place_of(out, world, row, seed)
    recipe, changes = recipe_of(world), ROWS[row].changes
    if changes is None:
        return [["eval", load_recipe(recipe).model.path, "--recipe", recipe, "--out", str(place)]]
    train = ["train", recipe, *changes, "--seed", str(seed), "--out", str(place)]
    return [train, ["eval", str(place), "--out", str(place / "evaluation")]]


def run_all(
    rows: Sequence[str], world: str, seeds: int, out: Path, jobs: int, progress: Callable[[int, int], None]
) -> None:
    """Makes what is not there yet; interrupted, the same call goes on. Raises StipuleError with a run's own words."""
    wanted = {(row, seed if ROWS[row].changes is not None else 0) for seed in range(seeds) for row in rows}
    # Seed by seed, so that a table can be read before its last seed is there.
    order = sorted(wanted, key=lambda pair: (pair[1], rows.index(pair[0])))
    done = 0
    with ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(_make, out, world, row, seed) for row, seed in order]
        try:
            for each in pending:
                each.result()
                done += 1
                progress(done, len(order))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _make(out: Path, world: str, row: str, seed: int) -> None:
    place = place_of(out, world, row, seed)
    _check(place, world, row, seed)
    for words in commands(out, world, row, seed):
        if words[0] == "train":
            if _trained(place):
                continue
            words = [*words, *(["--resume"] if place.exists() else [])]
        elif (Path(words[-1]) / "result.json").exists():
            continue
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "stipule", *words], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise StipuleError(
                f"stipule {' '.join(words)} ended with {done.returncode}: {said[-1] if said else 'nothing said'}; "
                "the finished runs are kept: the same command goes on"
            )


def _check(place: Path, world: str, row: str, seed: int) -> None:
    """Raises StipuleError if what is there was made by another recipe: a table must not mix two worlds."""
    kept, changes = place / "recipe.yaml", ROWS[row].changes
    if changes is None or not kept.exists():
        return
    if load_recipe(str(kept)) != load_recipe(recipe_of(world), (*changes, f"training.seed={seed}")):
        raise StipuleError(
            f"{place} holds a run of another recipe than {world} is now; its runs and new ones would stand in one "
            "table; give another --out, or remove the folder"
        )


def _trained(place: Path) -> bool:
    newest = newest_checkpoint(place / "checkpoints")
    return (
        newest is not None and read_train_state(newest).step == load_recipe(str(place / "recipe.yaml")).training.steps
    )


def outcome(out: Path, world: str, row: str, seed: int) -> Outcome:
    """What a finished run left in its folder."""
    place = place_of(out, world, row, seed)
    if ROWS[row].changes is None:
        result = _json(place / "result.json")
        return Outcome(_correct(place), 0, 0, 0.0, {}, {}, result["environment"], result["seconds"])
    newest = newest_checkpoint(place / "checkpoints")
    assert newest is not None
    progress, key = read_train_state(newest), "variance/estimate"
    logged = [line for line in _lines(place / "metrics.jsonl") if key in line]
    return Outcome(
        correct=_correct(place / "evaluation"),
        calls=progress.model_calls,
        anchor_calls=progress.pregeneration_calls,
        seconds=progress.seconds,
        variance={line["step"]: line[key] for line in logged},
        # Exact where all responses count equally many tokens, as in a world without end-of-text.
        sum_variance={
            line["step"]: line[key] * (line["response/length"] - line["response/anchors"]) ** 2 for line in logged
        },
        environment=_json(place / "environment.json"),
        evaluation_seconds=_json(place / "evaluation" / "result.json")["seconds"],
    )


def _correct(evaluation: Path) -> dict[str, bool]:
    return {line["key"]: bool(line["correct"]) for line in _lines(evaluation / "responses.jsonl")}


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
