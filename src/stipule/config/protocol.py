"""Evaluation protocols as data (`recipes/protocols`). Only results of the same protocol are comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from stipule.config.recipe import find_recipe, read_yaml, recipe_folder
from stipule.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """How an evaluation prompts, samples, cuts and grades. Temperature 0 and low-confidence remasking, always."""

    name: str
    version: int  # raised with every change that can change a result
    fingerprint: str  # first digits of the file's SHA-256
    end_of_text: Literal["cut", "skip"]  # cut at the first end-of-text, or (d1) skip special tokens and read the rest
    sampler: Mapping[str, int]  # gen_length, steps, block_length
    tasks: Mapping[str, Mapping[str, Any]]  # task -> prompt, grading, shots

    def recipe_sections(self, task: str | None) -> dict[str, Any]:
        """The sections of a recipe that this protocol sets. Raises RecipeError for a task that it does not have."""
        if task is None or task not in self.tasks:
            raise RecipeError(f"--task is {task!r}; protocol {self.name} needs one of {', '.join(self.tasks)}")
        return {
            "task": {"kind": task, **self.tasks[task]},
            "sampler": {**self.sampler, "stop_at_eos": self.stops_at_eos},
        }

    @property
    def stops_at_eos(self) -> bool:
        """Whether the text after the first end-of-text is unused, so that a row can stop there."""
        return self.end_of_text == "cut"

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that every result file contains."""
        return {"name": self.name, "version": self.version, "fingerprint": self.fingerprint}


def load_protocol(name: str) -> EvaluationProtocol:
    """A shipped protocol by name, or a YAML file. Raises RecipeError that lists the shipped names."""
    shipped = recipe_folder() / "protocols" / f"{name}.yaml"
    if not shipped.is_file() and not name.endswith((".yaml", ".yml")):
        known = ", ".join(sorted(p.stem for p in shipped.parent.glob("*.yaml")))
        raise RecipeError(f"there is no protocol {name!r}; allowed: {known}, or a YAML file")
    path = shipped if shipped.is_file() else find_recipe(name)
    data = read_yaml(path)
    identity = {"name": path.stem, "fingerprint": hashlib.sha256(path.read_bytes()).hexdigest()[:12]}
    try:
        return TypeAdapter(EvaluationProtocol).validate_python({**data, **identity})
    except ValidationError as cause:
        details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in cause.errors())
        raise RecipeError(
            f"{path} is no protocol: {details}; a protocol has version, end_of_text, sampler and tasks"
        ) from cause
