"""Reads a run folder for the report page. Missing or damaged files become notes on the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stipule.errors import RecipeError
from stipule.rollouts.schedule import Cutoff
from stipule.training.run_folder import STATE_FILE, check_format


@dataclass(frozen=True)
class Run:
    """The contents of one run folder."""

    name: str
    path: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]  # one line per step, ascending
    rollout_files: list[Path]  # saved responses by step, ascending
    pregeneration_calls: int  # rows x forward passes spent on the anchor store
    notes: tuple[str, ...]

    def section(self, name: str) -> dict[str, Any]:
        """A section of the recipe; empty if it is missing."""
        section = self.recipe.get(name)
        return section if isinstance(section, dict) else {}

    @property
    def rows_per_step(self) -> int | None:
        """Rollouts of a step according to the recipe; None if it does not say."""
        prompts, generations = (self.section("training").get(name) for name in ("prompts_per_step", "num_generations"))
        if isinstance(prompts, int) and isinstance(generations, int) and prompts > 0 and generations > 0:
            return prompts * generations
        return None


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs, named by folder, or by path if two folders have the same name."""
    names = [path.resolve().name for path in paths]
    return [
        read_run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names, strict=True)
    ]


def read_run(path: Path, name: str) -> Run:
    """One run. Raises RecipeError if the folder is no run folder, CheckpointError if an earlier version wrote it."""
    if not path.is_dir() or not ((path / "recipe.yaml").exists() or (path / "metrics.jsonl").exists()):
        raise RecipeError(
            f"{path} is no run folder: it has neither recipe.yaml nor metrics.jsonl; give a folder that stipule train "
            "or stipule quickstart wrote"
        )
    check_format(path)
    notes: list[str] = []
    recipe = _read_recipe(path / "recipe.yaml", notes)
    lines, skipped = read_json_lines(path / "metrics.jsonl")
    by_step = {line["step"]: line for line in lines if _is_step(line.get("step"))}
    skipped += sum(not _is_step(line.get("step")) for line in lines)
    if skipped:
        notes.append(f"{skipped} incomplete or unknown lines of metrics.jsonl were left out.")
    if not by_step:
        notes.append("No step has been recorded yet, so there are no curves.")
    environment = _read_json(path / "environment.json")
    if not environment:
        notes.append("environment.json is missing or damaged: the machine and the version are not known.")
    rollout_files = sorted((path / "rollouts").glob("step-*.jsonl"))
    if not rollout_files:
        notes.append("No responses were saved; set training.rollouts_every to save some.")
    return Run(
        name,
        path,
        recipe,
        environment,
        [by_step[step] for step in sorted(by_step)],
        rollout_files,
        _pregeneration_calls(path),
        tuple(notes),
    )


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a file, and the number of lines that are none.

    A killed process leaves its last line incomplete.
    """
    lines, skipped = [], 0
    if not path.exists():
        return [], 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except ValueError:
                skipped += 1
                continue
            if isinstance(line, dict):
                lines.append(line)
            else:
                skipped += 1
    return lines, skipped


def planned_cutoff(temporal: Mapping[str, Any]) -> Cutoff:
    """The cutoff in the schedule of a recorded run. Raises KeyError, TypeError or ValueError if the record lacks it.

    With a confidence cutoff, or a class of your own, it is not known beforehand which rows are cut: the schedule has no
    cut.
    """
    if temporal.get("kind", "constant") != "constant":
        return Cutoff()
    tail, rounding = temporal.get("tail", "argmax"), temporal.get("rounding", "floor")
    return Cutoff(float(temporal["cutoff"]), temporal["scope"], tail, rounding)


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_recipe(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        recipe = None
    if not isinstance(recipe, dict):
        notes.append("recipe.yaml is missing or damaged: settings, limits and savings are not known.")
        return {}
    return recipe


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _pregeneration_calls(path: Path) -> int:
    """Rows x forward passes spent on anchors, from the newest checkpoint."""
    checkpoints = sorted((path / "checkpoints").glob("step-*"))
    calls = _read_json(checkpoints[-1] / STATE_FILE).get("pregeneration_calls", 0) if checkpoints else 0
    return calls if isinstance(calls, int) else 0
