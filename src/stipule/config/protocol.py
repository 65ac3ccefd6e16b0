"""Evaluation protocols as data (`recipes/protocols`): a number is comparable only with numbers of the same one."""

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
    """How answers are asked for, denoised, cut and read. Temperature 0 and low-confidence order, always."""

    name: str
    version: int  # raised whenever a number could change
    fingerprint: str  # of the file
    end_of_text: Literal["cut", "skip"]  # cut at the first end-of-text, or d1's: special tokens left out, the rest read
    sampler: Mapping[str, int]  # length, steps, block
    tasks: Mapping[str, Mapping[str, Any]]  # task -> prompt, grading, shots

    def recipe_sections(self, task: str | None) -> dict[str, Any]:
        """The sections of a recipe that this protocol fixes. Raises RecipeError for a task it does not have."""
        if task is None or task not in self.tasks:
            raise RecipeError(
                f"protocol {self.name} needs a task that it has, not {task!r}; give --task "
                f"{' or --task '.join(self.tasks)}"
            )
        return {
            "task": {"kind": task, **self.tasks[task]},
            "sampler": {**self.sampler, "stop_at_eos": self.stops_at_eos},
        }

    @property
    def stops_at_eos(self) -> bool:
        """Whether nothing after the first end-of-text is read: only then may a row stop there."""
        return self.end_of_text == "cut"

    @property
    def identity(self) -> dict[str, Any]:
        """What of it goes into every result."""
        return {"name": self.name, "version": self.version, "fingerprint": self.fingerprint}


def load_protocol(name: str) -> EvaluationProtocol:
    """A shipped protocol by name, or a YAML file. Raises RecipeError, with the known names."""
    shipped = recipe_folder() / "protocols" / f"{name}.yaml"
    if not shipped.is_file() and not name.endswith((".yaml", ".yml")):
        known = ", ".join(sorted(p.stem for p in shipped.parent.glob("*.yaml")))
        raise RecipeError(f"there is no protocol {name!r}; shipped are {known}; or give a YAML file")
    path = shipped if shipped.is_file() else find_recipe(name)
    data = read_yaml(path)
    marks = {"name": path.stem, "fingerprint": hashlib.sha256(path.read_bytes()).hexdigest()[:12]}
    try:
        return TypeAdapter(EvaluationProtocol).validate_python({**data, **marks})
    except ValidationError as cause:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in cause.errors())
        raise RecipeError(f"{path} is no protocol: {wrong}; it has version, end_of_text, sampler and tasks") from cause
