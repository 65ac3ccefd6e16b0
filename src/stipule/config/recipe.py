"""YAML <-> dataclasses: one parent by `extends`, dotted overrides, and messages that say what to do."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from stipule.errors import RecipeError
from stipule.models.loading import resolve_model_path
from stipule.training.pretrain import PretrainRecipe
from stipule.training.settings import Recipe

Kind = TypeVar("Kind", Recipe, PretrainRecipe)


def load_recipe(path: str, overrides: Sequence[str] = (), kind: type[Kind] = Recipe) -> Kind:  # type: ignore[assignment]
    """A validated recipe from a YAML file and `section.key=value` overrides.

    Raises RecipeError, before any model loads.
    """
    return parse_recipe(read_yaml(find_recipe(path)), overrides, kind)


def parse_recipe(data: Mapping[str, Any], overrides: Sequence[str] = (), kind: type[Kind] = Recipe) -> Kind:  # type: ignore[assignment]
    """A validated recipe from plain data."""
    merged, changes = _merge({}, data), dict[str, Any]()
    _name_kinds(kind, merged)
    for override in overrides:
        _apply(changes, override)
    merged = _merge(merged, changes)
    _name_kinds(kind, merged)
    meant = _check_keys(kind, merged, "")
    try:
        return TypeAdapter(kind).validate_python(merged)
    except ValidationError as cause:
        # Of a union, pydantic tells what every member would say: only the one that `kind` names was asked.
        errors = [e for e in cause.errors() if {str(p) for p in e["loc"] if str(p)[:1].isupper()} <= meant]
        raise RecipeError("; ".join(dict.fromkeys(map(_explain, errors)))) from cause


def recipe_for_model(
    model: str,
    task: str | None = None,
    overrides: Sequence[str] = (),
    given: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    needs_task: bool = True,
) -> Recipe:
    """The recipe to evaluate or sample a model with: the given one, a run's own, what a tiny base was made for, or the
    defaults; `fixed` are whole sections that take the place of its own.

    Raises RecipeError if the task is needed, not known from the model and not given.
    """
    data: dict[str, Any] = {}
    place = Path(resolve_model_path(model))
    if given is not None:
        data = read_yaml(find_recipe(given))
    elif (Path(model) / "recipe.yaml").exists():
        data = read_yaml(Path(model) / "recipe.yaml")
    elif (place / "pretrain.yaml").exists():
        made = read_yaml(place / "pretrain.yaml")
        length = made["pretraining"]["gen_length"]
        data = {"task": made["task"], "sampler": {"gen_length": length, "steps": length, "block_length": length}}
    if fixed is not None:
        data |= fixed
    elif task is not None and data.get("task", {}).get("kind") != task:
        data["task"] = {"kind": task}
    data["model"] = {**data.get("model", {}), "path": model, "lora": None}
    if not needs_task:
        data.setdefault("task", {"kind": "countdown"})  # a recipe has one, and here nobody asks for it
    if "task" not in data and not any(o.startswith("task.kind=") for o in overrides):
        raise RecipeError(f"{model} does not say which task it is for; give one: --task sudoku or --task countdown")
    return parse_recipe(data, overrides)


def dump_recipe(recipe: Recipe | PretrainRecipe) -> str:
    """The whole recipe as YAML, defaults written out; loading it gives the same recipe."""
    return yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False, allow_unicode=True)


def find_recipe(path: str) -> Path:
    """A recipe file: as given, or by name among the recipes that ship with the package."""
    shipped = recipe_folder()
    for place in (Path(path), shipped / path, shipped / f"{path}.yaml", shipped / path.removeprefix("recipes/")):
        if place.is_file():
            return place
    known = sorted(str(p.relative_to(shipped)) for p in shipped.rglob("*.yaml") if p.parent.name != "launch")
    close = difflib.get_close_matches(path.removeprefix("recipes/"), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"shipped recipes: {', '.join(known)}"
    raise RecipeError(f"there is no recipe at {path!r}; give a YAML file or a shipped name; {hint}")


def recipe_folder() -> Path:
    """Where the shipped recipes lie: in an installed package beside the code, in a checkout at its root."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, with the parent that its `extends` names filled in underneath."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as cause:
        raise RecipeError(f"{path} is not readable YAML: {cause}") from cause
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds {type(data).__name__}; a recipe is a mapping of sections, e.g. 'task: ...'")
    parent = data.pop("extends", None)
    if parent is None:
        return data
    above = path.parent / str(parent)
    if not above.is_file():
        raise RecipeError(f"{path} extends {parent!r}, which is not there; the path is relative to the recipe's folder")
    if above.resolve() == path.resolve():
        raise RecipeError(f"{path} extends itself")
    return _merge(read_yaml(above), data)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        mine = merged.get(key)
        # Another `kind` is another component: nothing of the parent's fields carries over.
        if not isinstance(value, Mapping):
            merged[key] = value
        elif isinstance(mine, Mapping) and value.get("kind", mine.get("kind")) == mine.get("kind"):
            merged[key] = _merge(mine, value)
        else:
            merged[key] = _merge({}, value)
    return merged


def _apply(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"the override {override!r} is not of the form section.key=value, e.g. training.steps=20")
    here = data
    for key in keys[:-1]:
        if not isinstance(here.get(key), dict):
            here[key] = {}
        here = here[key]
    try:
        here[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as cause:
        raise RecipeError(f"the value in {override!r} is not readable YAML") from cause


def _name_kinds(kind: Any, data: dict[str, Any]) -> None:
    """Writes the default's `kind` into every section that is given without one: clip=0.1 means that of the default.

    Sections within sections too: pruning.temporal.cutoff=0.1 is the constant one.
    """
    for field in fields(kind):
        section = data.get(field.name)
        default = field.default_factory() if field.default_factory is not MISSING else None
        if isinstance(section, dict) and (named := getattr(default, "kind", None)):
            section.setdefault("kind", named)
        if isinstance(section, dict) and is_dataclass(default):
            _name_kinds(type(default), section)


def _check_keys(kind: Any, data: Any, where: str) -> set[str]:
    """The names of the dataclasses that the data is meant for.

    Raises RecipeError for an unknown key, with the nearest known one; pydantic would pass over it.
    """
    if not isinstance(data, Mapping):
        return set()
    choice = _dataclass_for(kind, data)
    if choice is None:
        return set()
    meant = {choice.__name__}
    hints = get_type_hints(choice)
    known = [f.name for f in fields(choice)]
    for key, value in data.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            others = [str(_kind(o)) for o in get_args(kind) if is_dataclass(o) and key in {f.name for f in fields(o)}]
            if others:
                hint = f"{', '.join(others)} would have it; remove it or change {where}kind"
            named = f" {data['kind']}" if "kind" in data else ""
            raise RecipeError(f"{where}{key} is not a key of {where.rstrip('.') or 'a recipe'}{named}; {hint}")
        meant |= _check_keys(hints[key], value, f"{where}{key}.")
    return meant


def _dataclass_for(kind: Any, data: Mapping[str, Any]) -> Any:
    """The dataclass that a mapping is meant for: of a union, the one whose `kind` it names."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    options = tuple(o for o in options if is_dataclass(o))
    named = [o for o in options if "kind" not in data or data["kind"] in _kinds(o)]
    if options and "kind" in data and not named:
        allowed = ", ".join(str(kind) for o in options for kind in _kinds(o))
        raise RecipeError(f"kind is {data['kind']!r}; allowed: {allowed}")
    if len(named) > 1:
        raise RecipeError(f"say which kind is meant; allowed: {', '.join(str(_kind(o)) for o in options)}")
    return named[0] if named else None


def _kind(option: Any) -> Any:
    return next((f.default for f in fields(option) if f.name == "kind"), None)


def _kinds(option: Any) -> tuple[Any, ...]:
    """The words for a dataclass: one, or several that it tells apart itself."""
    hint = get_type_hints(option).get("kind")
    return get_args(hint) or (_kind(option),)


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if not str(part)[:1].isupper())
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, RecipeError):
        return str(cause)
    return f"{where or 'the recipe'} is {error['input']!r}: {error['msg'].lower()}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
