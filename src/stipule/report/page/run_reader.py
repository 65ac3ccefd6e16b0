"""A run folder as the page reads it: whatever is there, and a note on whatever is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stipule.errors import RecipeError


@dataclass(frozen=True)
class Run:
    """What is known of one run."""

    name: str
    path: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    lines: list[dict[str, Any]]  # metrics by step, ascending
    rollouts: list[Path]  # saved responses by step, ascending
    pregeneration_calls: int
    notes: tuple[str, ...]

    def section(self, name: str) -> dict[str, Any]:
        """A section of the recipe; empty where the version that wrote it had none."""
        found = self.recipe.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def rows(self) -> int | None:
        """Responses of a step, as the recipe has it; None where it does not say."""
        prompts, group = (self.section("training").get(name) for name in ("prompts_per_step", "num_generations"))
        if isinstance(prompts, int) and isinstance(group, int) and prompts > 0 and group > 0:
            return prompts * group
        return None


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs, told apart by folder name, or by path where names repeat."""
    names = [path.resolve().name for path in paths]
    return [
        read_run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names, strict=True)
    ]


def read_run(path: Path, name: str) -> Run:
    """One run. Raises RecipeError if the folder is none of a run."""
    if not path.is_dir() or not ((path / "recipe.yaml").exists() or (path / "metrics.jsonl").exists()):
        raise RecipeError(
            f"{path} is no run folder: it has neither recipe.yaml nor metrics.jsonl; give a folder that stipule train "
            "or stipule quickstart wrote"
        )
    notes: list[str] = []
    recipe = _recipe(path / "recipe.yaml", notes)
    lines, broken = read_lines(path / "metrics.jsonl")
    by_step = {line["step"]: line for line in lines if _is_step(line.get("step"))}
    broken += sum(not _is_step(line.get("step")) for line in lines)
    if broken:
        notes.append(f"{broken} half-written or foreign lines of metrics.jsonl were left out.")
    if not by_step:
        notes.append("No step has been written down yet, so there is nothing to draw.")
    environment = _json(path / "environment.json")
    if not environment:
        notes.append("environment.json is missing or damaged: the machine and the version are not known.")
    rollouts = sorted((path / "rollouts").glob("step-*.jsonl"))
    if not rollouts:
        notes.append("No responses were saved (training.rollouts_every), so there are none to look at.")
    return Run(
        name,
        path,
        recipe,
        environment,
        [by_step[step] for step in sorted(by_step)],
        rollouts,
        _pregeneration(path),
        tuple(notes),
    )


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a file, and how many lines were none: a killed process leaves its last line half-written."""
    lines, broken = [], 0
    if not path.exists():
        return [], 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except ValueError:
                broken += 1
                continue
            if isinstance(line, dict):
                lines.append(line)
            else:
                broken += 1
    return lines, broken


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _recipe(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        notes.append("recipe.yaml is missing or damaged: settings, limits and savings are not known.")
        return {}
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _pregeneration(path: Path) -> int:
    """Model calls spent on anchors, as the newest checkpoint knows them."""
    places = sorted((path / "checkpoints").glob("step-*"))
    found = _json(places[-1] / "progress.json").get("pregeneration_calls", 0) if places else 0
    return found if isinstance(found, int) else 0
