"""Recipes: YAML files with one parent (`extends`) and overrides (`section.key=value`), read into dataclasses."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stipule.config.custom_parts import with_custom_parts
from stipule.config.profiles import read_profile
from stipule.config.validation import validate
from stipule.errors import RecipeError
from stipule.models.loading import resolve_model_path
from stipule.object_import import settings_of
from stipule.training.pretrain import PretrainRecipe
from stipule.training.run_folder import check_format
from stipule.training.settings import Recipe

Kind = TypeVar("Kind", Recipe, PretrainRecipe)


def load_recipe(path: str, overrides: Sequence[str] = (), kind: type[Kind] = Recipe) -> Kind:  # type: ignore[assignment]
    """A validated recipe from a YAML file and `section.key=value` overrides.

    Raises RecipeError, before any model loads.
    """
    return parse_recipe(read_yaml(find_recipe(path)), overrides, kind)


def parse_recipe(data: Mapping[str, Any], overrides: Sequence[str] = (), kind: type[Kind] = Recipe) -> Kind:  # type: ignore[assignment]
    """A validated recipe from plain data. Its `profile`, if it has one, sets what the data and overrides do not."""
    changes: dict[str, Any] = {}
    for override in overrides:
        _add_override(changes, override)
    merged = _merge({}, data)
    written = _merge(merged, changes)
    if kind is Recipe and "profile" in written:
        profile = read_profile(written["profile"], written)
        merged, changes = ({k: v for k, v in section.items() if k != "profile"} for section in (merged, changes))
        merged = _merge(profile, merged)
    _add_default_kinds(kind, merged)
    merged = _merge(merged, changes)
    _add_default_kinds(kind, merged)
    if kind is Recipe:
        merged = with_custom_parts(merged)
    return validate(kind, merged)


def recipe_for_model(
    model: str,
    task: str | None = None,
    overrides: Sequence[str] = (),
    recipe_path: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    needs_task: bool = True,
) -> Recipe:
    """The recipe to evaluate or sample a model with: that of `recipe_path`, else of the run, else of a pre-trained tiny
    model, else the defaults. The sections in `fixed` replace those of the recipe.

    Raises RecipeError if the task is needed but unknown, CheckpointError if an earlier version wrote the run folder.
    """
    data: dict[str, Any] = {}
    folder = Path(resolve_model_path(model))
    if recipe_path is not None:
        data = read_yaml(find_recipe(recipe_path))
    elif (Path(model) / "recipe.yaml").exists():
        check_format(Path(model))
        data = read_yaml(Path(model) / "recipe.yaml")
    elif (folder / "pretrain.yaml").exists():
        pretrained = read_yaml(folder / "pretrain.yaml")
        data = {"task": pretrained["task"], "sampler": _pretrained_sampler(folder / "pretrain.yaml", pretrained)}
    if fixed is not None:
        data |= fixed
    elif task is not None and data.get("task", {}).get("kind") != task:
        data["task"] = {"kind": task}
    data["model"] = {**data.get("model", {}), "path": model, "lora": None}
    if not needs_task:
        data.setdefault("task", {"kind": "countdown"})  # a recipe must have a task; the caller does not use it
    if "task" not in data and not any(o.startswith("task.kind=") for o in overrides):
        raise RecipeError(f"the task of {model} is not known; give one, e.g. --task sudoku or --task countdown")
    return parse_recipe(data, overrides)


def dump_recipe(recipe: Recipe | PretrainRecipe) -> str:
    """The recipe as YAML with every setting, defaults included; loading it gives the same recipe."""
    return yaml.safe_dump(settings_of(recipe), sort_keys=False, allow_unicode=True)


def find_recipe(path: str) -> Path:
    """A recipe file: the given path, or a shipped recipe of that name. Raises RecipeError with the nearest name."""
    shipped = recipe_folder()
    for candidate in (Path(path), shipped / path, shipped / f"{path}.yaml", shipped / path.removeprefix("recipes/")):
        if candidate.is_file():
            return candidate
    known = sorted(str(p.relative_to(shipped)) for p in shipped.rglob("*.yaml") if p.parent.name != "launch")
    close = difflib.get_close_matches(path.removeprefix("recipes/"), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"shipped recipes: {', '.join(known)}"
    raise RecipeError(f"there is no recipe at {path!r}; give a YAML file or a shipped name; {hint}")


def recipe_folder() -> Path:
    """The folder of the shipped recipes: inside an installed package, or at the root of a checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, merged over the parent file that `extends` names."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as cause:
        raise RecipeError(f"{path} is not readable YAML: {cause}") from cause
    if not isinstance(data, dict):
        raise RecipeError(
            f"{path} contains a {type(data).__name__}; a recipe is a mapping of sections, e.g. 'task: ...'"
        )
    parent = data.pop("extends", None)
    if parent is None:
        return data
    parent_path = path.parent / str(parent)
    if not parent_path.is_file():
        raise RecipeError(
            f"{path} extends {parent!r}, but {parent_path} does not exist; the path is relative to the recipe's folder"
        )
    if parent_path.resolve() == path.resolve():
        raise RecipeError(f"{path} extends itself; name another recipe, or remove extends")
    return _merge(read_yaml(parent_path), data)


def _pretrained_sampler(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """One token per forward pass over responses of the pre-trained length, in the blocks of the model."""
    try:
        recipe = parse_recipe(data, kind=PretrainRecipe)
    except RecipeError as cause:
        raise RecipeError(f"{path} is not valid: {cause}; correct it, or pre-train the model again") from cause
    length, block_length = recipe.pretraining.gen_length, recipe.shape.block_length
    if block_length is None:
        return {"gen_length": length, "steps": length, "block_length": length}
    blocks = {"block_length": block_length, "block_schedule": "separate", "cache": {"kind": "finished_blocks"}}
    return {"gen_length": length, "steps": length, **blocks}


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        # Another `kind` is another component: it inherits no setting of the old one.
        if not isinstance(value, Mapping):
            merged[key] = value
        elif isinstance(old, Mapping) and value.get("kind", old.get("kind")) == old.get("kind"):
            merged[key] = _merge(old, value)
        else:
            merged[key] = _merge({}, value)
    return merged


def _add_override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"the override {override!r} is not of the form section.key=value, e.g. training.steps=20")
    section = data
    for key in keys[:-1]:
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    try:
        section[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as cause:
        raise RecipeError(f"the value in {override!r} is not valid YAML; quote it") from cause


def _add_default_kinds(kind: Any, data: dict[str, Any]) -> None:
    """Adds the default `kind` to each section without one: objective.epsilon=0.1 changes the default objective.

    Nested sections too: pruning.temporal.cutoff=0.1 sets the fixed cutoff.
    """
    for field in fields(kind):
        section = data.get(field.name)
        default = field.default_factory() if field.default_factory is not MISSING else None
        if isinstance(section, dict) and (default_kind := getattr(default, "kind", None)):
            section.setdefault("kind", default_kind)
        if isinstance(section, dict) and is_dataclass(default):
            _add_default_kinds(type(default), section)
