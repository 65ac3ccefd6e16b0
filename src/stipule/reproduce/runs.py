"""The runs of a table. Each row and seed is one `stipule train` and one `stipule eval`, on a CPU core of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stipule.atomic_io import make_folder
from stipule.config.recipe import load_recipe
from stipule.errors import RecipeError, StipuleError
from stipule.file_lock import sole_writer
from stipule.reproduce.catalogue import ROWS
from stipule.training.checkpoint import newest_checkpoint, read_train_state
from stipule.training.run_folder import check_format


@dataclass(frozen=True)
class Outcome:
    """The results of one model, trained or not."""

    correct: dict[str, bool]  # whether each eval problem is solved, by its key
    calls: int  # rows x forward passes of training, without pre-generation of anchors
    anchor_calls: int  # those of pre-generation
    seconds: float  # of training
    variance: Mapping[int, float]  # of the estimate per token in the normalizer, by RL step; only steps that logged it
    sum_variance: Mapping[int, float]  # of the sum over these tokens, for the same steps
    groups: float  # fraction of groups whose rewards differ, mean over RL steps
    environment: Mapping[str, Any]  # machine and versions
    evaluation_seconds: float
    evaluations: tuple[tuple[int, float], ...] = ()  # those in training: forward passes until then, accuracy

    @property
    def solved(self) -> int:
        return sum(self.correct.values())


def recipe_of(testbed: str) -> str:
    """The recipe of a testbed, which is the name of a shipped one or a YAML file."""
    return testbed if testbed.endswith((".yaml", ".yml")) else f"reproduce/{testbed}"


def check_rows(rows: Sequence[str], testbed: str) -> None:
    """Raises RecipeError if a row's settings do not fit the testbed."""
    gen_length = load_recipe(recipe_of(testbed)).sampler.gen_length
    for row in rows:
        try:
            load_recipe(recipe_of(testbed), ROWS[row].overrides_for(gen_length))
        except RecipeError as cause:
            raise RecipeError(f"the row {row!r} on the testbed {testbed}: {cause}, or another --world") from cause


def run_path(out: Path, testbed: str, row: str, seed: int) -> Path:
    """The folder of a run. The untrained base has no seed."""
    return out / Path(testbed).stem / (row if ROWS[row].overrides is None else f"{row}-{seed}")


def commands(out: Path, testbed: str, row: str, seed: int) -> list[list[str]]:
    """The arguments of the `stipule` commands of one run."""
    path = run_path(out, testbed, row, seed)
    recipe = recipe_of(testbed)
    loaded = load_recipe(recipe)
    if ROWS[row].overrides is None:
        return [["eval", loaded.model.path, "--recipe", recipe, "--out", str(path)]]
    overrides = ROWS[row].overrides_for(loaded.sampler.gen_length)
    train = ["train", recipe, *overrides, "--seed", str(seed), "--out", str(path)]
    return [train, ["eval", str(path), "--out", str(path / "evaluation")]]


def run_all(
    rows: Sequence[str], testbed: str, seeds: int, out: Path, jobs: int, progress: Callable[[int, int], None]
) -> None:
    """Runs everything that is not finished, so the same call continues after an interruption.

    Raises StipuleError with the last line of the output if a run fails, RecipeError if another process runs these.
    """
    runs = {(row, seed if ROWS[row].overrides is not None else 0) for seed in range(seeds) for row in rows}
    # By seed first, so that the table can be printed before the last seed is finished.
    order = sorted(runs, key=lambda run: (run[1], rows.index(run[0])))
    children: set[subprocess.Popen[str]] = set()
    folder = out / Path(testbed).stem
    make_folder(folder)
    with sole_writer(folder), ThreadPoolExecutor(jobs) as pool:
        unfinished = [run for run in order if not _is_finished(out, testbed, *run)]
        finished = len(order) - len(unfinished)
        progress(finished, len(order))
        pending = [pool.submit(_run, out, testbed, row, seed, children) for row, seed in unfinished]
        try:
            for future in pending:
                future.result()
                finished += 1
                progress(finished, len(order))
        except BaseException as cause:
            if isinstance(cause, KeyboardInterrupt):  # a signal for this process only: the runs save and end, too
                for child in tuple(children):
                    child.send_signal(signal.SIGTERM)
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _run(out: Path, testbed: str, row: str, seed: int, children: set[subprocess.Popen[str]]) -> None:
    path = run_path(out, testbed, row, seed)
    for arguments in commands(out, testbed, row, seed):
        if arguments[0] == "train":
            if _is_trained(path):
                continue
            arguments = [*arguments, *(["--resume"] if path.exists() else [])]
        elif (Path(arguments[-1]) / "result.json").exists():
            continue
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "stipule", *arguments]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            children.add(process)
            stdout, stderr = process.communicate()
            children.discard(process)
        if process.returncode:
            output = (stderr or stdout).strip().splitlines()
            raise StipuleError(
                f"stipule {' '.join(arguments)} exited with {process.returncode}: "
                f"{output[-1] if output else 'no output'}; finished runs are kept: run the same command again"
            )


def _check_recipe(path: Path, testbed: str, row: str, seed: int) -> None:
    """Raises StipuleError if the folder has a run of another recipe: one table must not mix two recipes."""
    recipe_path = path / "recipe.yaml"
    if ROWS[row].overrides is None or not recipe_path.exists():
        return
    check_format(path)
    overrides = ROWS[row].overrides_for(load_recipe(recipe_of(testbed)).sampler.gen_length)
    if load_recipe(str(recipe_path)) != load_recipe(recipe_of(testbed), (*overrides, f"training.seed={seed}")):
        raise StipuleError(
            f"{path} has a run of another recipe than {testbed} is now; one table must not mix two recipes; give "
            "another --out, or remove the folder"
        )


def _is_finished(out: Path, testbed: str, row: str, seed: int) -> bool:
    """Whether the run is trained and evaluated. Raises StipuleError if it is that of another recipe."""
    _check_recipe(run_path(out, testbed, row, seed), testbed, row, seed)
    return (Path(commands(out, testbed, row, seed)[-1][-1]) / "result.json").exists()


def _is_trained(path: Path) -> bool:
    newest = newest_checkpoint(path / "checkpoints")
    return newest is not None and read_train_state(newest).step == load_recipe(str(path / "recipe.yaml")).training.steps


def read_outcome(out: Path, testbed: str, row: str, seed: int) -> Outcome:
    """Reads the results of a finished run from its folder."""
    path = run_path(out, testbed, row, seed)
    if ROWS[row].overrides is None:
        result = _json(path / "result.json")
        return Outcome(_correct(path), 0, 0, 0.0, {}, {}, 0.0, result["environment"], result["seconds"])
    newest = newest_checkpoint(path / "checkpoints")
    assert newest is not None
    state, key = read_train_state(newest), "variance/estimate"
    metrics = _lines(path / "metrics.jsonl")
    logged = [line for line in metrics if key in line]
    estimator = load_recipe(str(path / "recipe.yaml")).estimator
    anchors_count = getattr(estimator, "anchors", "outside") == "inside"  # in the normalizer
    return Outcome(
        correct=_correct(path / "evaluation"),
        calls=state.model_calls,
        anchor_calls=state.pregeneration_calls,
        seconds=state.seconds,
        variance={line["step"]: line[key] for line in logged},
        # Exact if all responses have the same number of tokens, as on a testbed without end-of-text.
        sum_variance={
            line["step"]: line[key] * (line["response/length"] - (not anchors_count) * line["response/anchors"]) ** 2
            for line in logged
        },
        evaluations=tuple(
            (line["nfe/total"] + state.pregeneration_calls, line["eval/solved"] / line["eval/total"])
            for line in metrics
            if "eval/solved" in line
        ),
        groups=fmean(line["reward/frac_nonzero_std"] for line in metrics),
        environment=_json(path / "environment.json"),
        evaluation_seconds=_json(path / "evaluation" / "result.json")["seconds"],
    )


def _correct(evaluation: Path) -> dict[str, bool]:
    return {line["key"]: bool(line["correct"]) for line in _lines(evaluation / "responses.jsonl")}


def _json(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
