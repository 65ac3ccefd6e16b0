"""The run folder: recipe.yaml, environment.json, metrics.jsonl, rollouts/ and checkpoints/."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stipule import __version__
from stipule.atomic_io import append_text, make_folder, replace_file
from stipule.errors import CheckpointError, RecipeError
from stipule.file_lock import LOCK, sole_writer
from stipule.training.provenance import (
    changed_code,
    commit,
    cpu_flags,
    custom_code,
    instruction_set,
    processor,
)

STATE_FILE = "train_state.json"  # in each checkpoint: the state of the run beside weights and optimizer
FORMAT = 2  # of a run folder; 1 had other names of settings and metrics
# What may differ between a run and its continuation without changing a step that both have.
MAY_CHANGE = (
    "training.steps",
    "training.save_every",
    "training.save_total_limit",
    "training.rollouts_every",
    "alarms",
    "tracking",
)


class RunFolder:
    """Files of one run. Opening never overwrites: a folder that contains another run is refused."""

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes

    @classmethod
    def read_only(cls, path: Path) -> RunFolder:
        """The folder for all ranks but the main process: they read, and write nothing."""
        return cls(path, writes=False)

    @classmethod
    def create(cls, path: Path, recipe: str) -> RunFolder:
        """A new run. Raises RecipeError if the folder contains anything, or if code of your own cannot be imported."""
        code = custom_code(_parse_yaml(recipe or "{}"))
        occupied = RecipeError(
            f"{path} already holds {'a run' if (path / 'recipe.yaml').exists() else 'other files'}; nothing was "
            "changed; continue it with --resume (from Python: resume=True), or give another folder"
        )
        if path.exists() and not path.is_dir():
            raise occupied
        make_folder(path)
        folder = cls(path)
        with folder.sole_writer():
            if any(file.name != LOCK for file in path.iterdir()):
                raise occupied
            record = environment() | ({"custom_code": code} if code else {})
            replace_file(path / "environment.json", lambda p: p.write_text(json.dumps(record, indent=2) + "\n"))
            replace_file(path / "recipe.yaml", lambda p: p.write_text(recipe))
        return folder

    @classmethod
    def reopen(cls, path: Path, recipe: str) -> RunFolder:
        """An interrupted run. Raises RecipeError if there is none or it had another recipe, CheckpointError if an
        earlier version wrote it.
        """
        recipe_path = path / "recipe.yaml"
        if not recipe_path.exists():
            raise RecipeError(f"there is no run to resume in {path}; leave out --resume to start one")
        check_format(path)
        changed = _differences(_parse_yaml(recipe_path.read_bytes()), _parse_yaml(recipe))
        allowed = tuple(f"{key}{sign}" for key in MAY_CHANGE for sign in ":.")
        changed = [line for line in changed if not line.startswith(allowed)]
        if changed:
            raise RecipeError(
                f"{path} was started with another recipe ({'; '.join(changed[:4])}), as its recipe.yaml says; a "
                "resumed run must repeat it exactly; give the same recipe and overrides, or start again with another "
                "--out"
            )
        _check_code(path, _parse_yaml(recipe or "{}"))
        folder = cls(path)
        with folder.sole_writer():
            replace_file(recipe_path, lambda p: p.write_text(recipe))
        return folder

    @contextmanager
    def sole_writer(self) -> Iterator[None]:
        """Inside, no other process may write the folder. Only the main process of a run holds the lock."""
        if not self.writes:
            yield
            return
        with sole_writer(self.path):
            yield

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds one line to the run's record."""
        if self.writes:
            append_text(self.metrics, json.dumps(line) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines so far. An incomplete last line, as a killed process leaves it, is dropped.

        Raises CheckpointError if another line is damaged.
        """
        lines = []
        for number, content in enumerate(self._complete_lines(), 1):
            try:
                lines.append(json.loads(content.decode("utf-8")))
                int(lines[-1]["step"])
            except (ValueError, TypeError, KeyError) as cause:
                raise self._damaged(f"line {number} cannot be read ({cause!r})") from cause
        return lines

    def metrics_checksum(self) -> str:
        """The SHA-256 of metrics.jsonl, which is on the disk afterwards."""
        if not self.metrics.exists():
            return ""
        with self.metrics.open("rb") as file:
            os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()

    def truncate_after(self, step: int, checksum: str = "") -> None:
        """Removes the lines of steps after `step`: a resumed run repeats them.

        Raises CheckpointError if `checksum`, that of metrics.jsonl when the step was saved, is not that of the lines
        that are left. A file that was moved away is no error: the run continues with a new one.
        """
        if not self.writes or not self.metrics.exists():
            return
        lines = zip(self._complete_lines(), self.read_metrics(), strict=True)
        kept = b"".join(content + b"\n" for content, line in lines if line["step"] <= step)
        if checksum and hashlib.sha256(kept).hexdigest() != checksum:
            raise self._damaged(f"the lines up to step {step} are not those that were written")
        replace_file(self.metrics, lambda p: p.write_bytes(kept))

    def _complete_lines(self) -> list[bytes]:
        """The lines that end with a line feed."""
        return self.metrics.read_bytes().split(b"\n")[:-1] if self.metrics.exists() else []

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.metrics} is damaged: {reason}; restore it from a copy, or move it away: the run then continues "
            "with a new record"
        )

    def write_rollouts(self, step: int, rows: list[dict[str, Any]]) -> Path:
        """Writes the rollouts of one step, one line each."""
        path = self.path / "rollouts" / f"step-{step:06d}.jsonl"
        if self.writes:
            replace_file(path, lambda p: p.write_text("".join(json.dumps(row) + "\n" for row in rows)))
        return path


def check_format(path: Path) -> None:
    """Raises CheckpointError if an earlier version wrote the run folder, whose settings and metrics had other names."""
    try:
        saved = json.loads((path / "environment.json").read_text())
    except (OSError, ValueError):
        return  # the file is missing or damaged: the recipe's own checks decide
    if isinstance(saved, dict) and saved.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was written by an earlier version of stipule, whose settings and metrics had other names "
            "(docs/names.md); start the run again with another --out"
        )


def _check_code(path: Path, recipe: Mapping[str, Any]) -> None:
    """Raises RecipeError if a file of your own is not as it was when the run was started."""
    try:
        saved = json.loads((path / "environment.json").read_text())
        recorded = dict(saved.get("custom_code", {}))
    except (OSError, ValueError, TypeError, AttributeError):
        return  # the file is missing or damaged
    if changed := changed_code(recorded, custom_code(recipe)):
        raise RecipeError(
            f"{path} was started with other code in {', '.join(changed)}: the file has another SHA-256 than its "
            "environment.json says; a resumed run must repeat its steps exactly; restore the file, or start again with "
            "another --out"
        )


def environment() -> dict[str, Any]:
    """What a reader must know about the machine and the software to trust a number."""
    return {
        "format": FORMAT,
        "stipule": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": processor(),
        "instruction_set": instruction_set(cpu_flags()),
        "cores": os.cpu_count(),
        "commit": commit(),
        **{name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
    }


def _parse_yaml(text: str | bytes) -> dict[str, Any]:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as cause:
        raise CheckpointError(f"the run's recipe.yaml is damaged: {cause}") from cause


def _differences(before: Any, after: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(before) + [key for key in after if key not in before]
        return [d for k in keys for d in _differences(before.get(k), after.get(k), f"{name}.{k}" if name else k)]
    return [] if before == after else [f"{name}: {before!r} then, {after!r} now"]
