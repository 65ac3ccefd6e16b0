"""The run folder: recipe.yaml environment.json metrics.jsonl rollouts/ checkpoints/."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stipule import __version__
from stipule.errors import CheckpointError, RecipeError
from stipule.files import refused, replace_file
from stipule.training.origin import commit, processor

# What may differ between a run and its continuation without changing a step that both have.
MAY_CHANGE = (
    "training.steps",
    "training.save_every",
    "training.keep",
    "training.rollouts_every",
    "alarms",
    "tracking",
)


class RunFolder:
    """Files of one run. Opening never overwrites: a folder with another run in it is refused."""

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes

    @classmethod
    def follow(cls, path: Path) -> RunFolder:
        """The run as all ranks but the first see it: they read, and write nothing."""
        return cls(path, writes=False)

    @classmethod
    def create(cls, path: Path, recipe: str) -> RunFolder:
        """A new run. Raises RecipeError if the folder holds anything that is not ours to replace."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RecipeError(
                f"{path} already holds {'a run' if (path / 'recipe.yaml').exists() else 'other files'}; nothing was "
                "changed; continue it with --resume, or give another folder with --out"
            )
        folder = cls(path)
        replace_file(path / "environment.json", lambda p: p.write_text(json.dumps(environment(), indent=2) + "\n"))
        replace_file(path / "recipe.yaml", lambda p: p.write_text(recipe))
        return folder

    @classmethod
    def reopen(cls, path: Path, recipe: str) -> RunFolder:
        """An interrupted run. Raises RecipeError if there is none or it was another recipe."""
        kept = path / "recipe.yaml"
        if not kept.exists():
            raise RecipeError(f"there is no run to resume in {path}; leave out --resume to start one")
        changed = _differences(_yaml(kept.read_text()), _yaml(recipe))
        free = tuple(f"{key}{mark}" for key in MAY_CHANGE for mark in ":.")
        changed = [line for line in changed if not line.startswith(free)]
        if changed:
            raise RecipeError(
                f"{path} was started with another recipe ({'; '.join(changed[:4])}); a resumed run must repeat it "
                "exactly; give the same recipe and overrides, or start anew with another --out"
            )
        replace_file(kept, lambda p: p.write_text(recipe))
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """One line a step: the record of the run."""
        if not self.writes:
            return
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as cause:
            raise refused(self.metrics, cause) from cause

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines so far; a half-written last line, as a killed process leaves it, is dropped."""
        lines = []
        for text in self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
        return lines

    def forget_after(self, step: int) -> None:
        """Drops the lines of steps from `step` on: a resumed run takes them again."""
        if not self.writes:
            return
        kept = [json.dumps(line) + "\n" for line in self.read_metrics() if line["step"] <= step]
        replace_file(self.metrics, lambda p: p.write_text("".join(kept)))

    def write_rollouts(self, step: int, rows: list[dict[str, Any]]) -> Path:
        """The responses of one step, a line each."""
        path = self.path / "rollouts" / f"step-{step:06d}.jsonl"
        if self.writes:
            replace_file(path, lambda p: p.write_text("".join(json.dumps(row) + "\n" for row in rows)))
        return path


def environment() -> dict[str, Any]:
    """What a reader needs to know about the machine to believe a number."""
    return {
        "stipule": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "commit": commit(),
        **{name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
    }


def _yaml(text: str) -> dict[str, Any]:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as cause:
        raise CheckpointError(f"the run's recipe.yaml is damaged: {cause}") from cause


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(before) + [key for key in after if key not in before]
        return [d for k in keys for d in _differences(before.get(k), after.get(k), f"{where}.{k}" if where else k)]
    return [] if before == after else [f"{where}: {before!r} then, {after!r} now"]
