"""Parts of your own in a recipe: `kind: path/to/file.py:Class`, or a name that an installed package registers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, lru_cache
from importlib.metadata import entry_points
from types import FunctionType
from typing import Any, get_type_hints

from pydantic.errors import PydanticUserError

from stipule.config.validation import kinds_of, validate
from stipule.errors import RecipeError
from stipule.estimators.estimator import Estimator
from stipule.object_import import import_object, is_reference, settings_of
from stipule.objectives.advantage import AdvantageFunction
from stipule.objectives.objective import Objective
from stipule.rollouts.anchor_ratio_schedule import AnchorRatioSchedule
from stipule.rollouts.pruning import AnchorRule, TemporalRule
from stipule.rollouts.unmasking import UnmaskingRule
from stipule.tasks.problem import Task
from stipule.training.settings import Recipe


@dataclass(frozen=True)
class PartType:
    """A setting that may be a class of your own."""

    protocol: type
    group: str  # of the entry points with which packages register names
    built_in_is_string: bool = False  # the built-in choices are plain names, not sections with `kind`


PART_TYPES = {
    "task": PartType(Task, "stipule.tasks"),
    "estimator": PartType(Estimator, "stipule.estimators"),
    "advantage": PartType(AdvantageFunction, "stipule.advantages"),
    "objective": PartType(Objective, "stipule.objectives"),
    "sampler.remasking": PartType(UnmaskingRule, "stipule.remasking", True),
    "pruning.temporal": PartType(TemporalRule, "stipule.temporal_pruning"),
    "pruning.spatial.keep": PartType(AnchorRule, "stipule.spatial_pruning", True),
    "pruning.spatial.schedule": PartType(AnchorRatioSchedule, "stipule.anchor_ratio_schedules"),
}


def with_custom_parts(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a recipe with an instance in place of each section that describes a class of your own.

    Raises RecipeError for a name that nothing or more than one thing has, a class that is not a frozen dataclass or
    does not follow the protocol, and settings that it does not have.
    """
    _check_spatial(data)
    result = dict(data)
    for name, part_type in PART_TYPES.items():
        *parents, key = name.split(".")
        section: Any = result
        for parent in parents:  # copied on the way, so that the caller's data stay as they are
            if isinstance(section, dict) and isinstance(section.get(parent), Mapping):
                section[parent] = dict(section[parent])
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and key in section:
            section[key] = _part(name, part_type, section[key])
    return result


def _check_spatial(data: Mapping[str, Any]) -> None:
    """Raises RecipeError, with the settings that may be a class, if spatial pruning as a whole is to be one."""
    pruning = data.get("pruning")
    spatial = pruning.get("spatial") if isinstance(pruning, Mapping) else None
    if isinstance(spatial, Mapping) and is_reference(spatial.get("kind")):
        raise RecipeError(
            f"pruning.spatial.kind is {spatial['kind']!r}, but spatial pruning has none; set pruning.spatial.keep to "
            "the class that decides which tokens are fixed, or pruning.spatial.schedule.kind to the one that decides "
            "how many"
        )


def _part(name: str, part_type: PartType, value: Any) -> Any:
    """An instance if the value describes a part of your own, else the value."""
    settings = dict(value) if isinstance(value, Mapping) else {}
    kind = settings.pop("kind", None) if isinstance(value, Mapping) else value
    if part_type.built_in_is_string and isinstance(value, Mapping) and kind is None:
        raise RecipeError(f"{name} has settings and no kind; set {name}.kind to the class that has them")
    if not isinstance(kind, str) or (kind is value and not part_type.built_in_is_string):
        return value
    built_in, registered = kinds_of(_hint(name)), _registered(part_type.group)
    if kind in registered:
        _check_one_owner(name, part_type, kind, kind in built_in, registered[kind])
        return _build(name, part_type, registered[kind][0][0], settings)
    if is_reference(kind):
        return _build(name, part_type, kind, settings)
    if kind not in built_in:
        allowed = ", ".join([*built_in, *registered])
        setting = name if part_type.built_in_is_string else f"{name}.kind"
        raise RecipeError(
            f"{setting} is {kind!r}; allowed: {allowed}, or a class of your own: path/to/file.py:Class or "
            "package.module:Class"
        )
    if part_type.built_in_is_string and settings:
        raise RecipeError(f"{name} is {kind}, which has no setting {', '.join(map(str, settings))}; remove it")
    return kind if part_type.built_in_is_string else value


@cache
def _hint(name: str) -> Any:
    """The type of a setting."""
    hint: Any = Recipe
    for key in name.split("."):
        hint = get_type_hints(hint)[key]
    return hint


def _check_one_owner(
    name: str, part_type: PartType, kind: str, is_built_in: bool, owners: list[tuple[str, str]]
) -> None:
    """Raises RecipeError if a built-in part or a second package has the name that a package registers."""
    packages = [f"{package} ({reference})" for reference, package in owners]
    if is_built_in or len(owners) > 1:
        both = [*(["stipule itself"] if is_built_in else []), *packages]
        raise RecipeError(
            f"{name} is {kind!r}, and {' and '.join(both)} have a part of this name in the entry points "
            f"{part_type.group}; write the class itself, e.g. {owners[0][0]}, or uninstall one of them"
        )


def _registered(group: str) -> dict[str, list[tuple[str, str]]]:
    """Name -> (reference, package) of each entry point of a group."""
    return _entry_points(tuple(sys.path)).get(group, {})


@lru_cache(maxsize=4)
def _entry_points(search_path: tuple[str, ...]) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """The entry points of all our groups; read once, as it takes longer than the recipe."""
    groups = {part_type.group for part_type in PART_TYPES.values()}
    registered: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for group in groups:
        for point in entry_points(group=group):
            owner = (point.value, point.dist.name if point.dist else "a package")
            registered.setdefault(group, {}).setdefault(point.name, []).append(owner)
    return registered


def _build(name: str, part_type: PartType, reference: str, settings: Mapping[str, Any]) -> Any:
    """The instance of a class of your own."""
    cls = import_object(reference, name)
    if not _is_frozen_dataclass(cls):
        raise RecipeError(
            f"{name} is {reference!r}, which is not a frozen dataclass; its fields are the settings; write "
            "@dataclass(frozen=True) above the class"
        )
    if errors := list(_protocol_errors(cls, part_type.protocol)):
        raise RecipeError(
            f"{name} is {reference!r}, which does not follow the protocol {part_type.protocol.__name__} in "
            f"{part_type.protocol.__module__}: {'; '.join(errors)}"
        )
    try:
        part = validate(cls, settings, f"{name}.")
    except (PydanticUserError, NameError, TypeError) as cause:
        raise RecipeError(
            f"{name} is {reference!r}, which cannot be made from its settings: {type(cause).__name__}: "
            f"{str(cause).splitlines()[0]}; correct the types of its fields or its __post_init__"
        ) from cause
    if not _is_plain(settings_of(part)):
        raise RecipeError(
            f"{name} is {reference!r}, whose settings are not all plain values: {part}; use fields of bool, int, "
            "float, str, None, tuples and dictionaries of them, or dataclasses"
        )
    return part


def _is_frozen_dataclass(cls: Any) -> bool:
    """Whether the class itself has the decorator: without it, a subclass has no settings of its own."""
    return isinstance(cls, type) and "__dataclass_params__" in vars(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _protocol_errors(cls: type, protocol: type) -> Iterator[str]:
    """What a class lacks: a member of the protocol, or a method with the right parameters."""
    settings = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
    for name, member in vars(protocol).items():
        if name.startswith("_") and name != "__call__":
            continue
        own = next((vars(c)[name] for c in cls.__mro__ if name in vars(c) and c is not protocol), None)
        if isinstance(member, FunctionType):
            if own is None:
                yield f"it has no method {name}{_parameters(member)}; add it"
            else:
                yield from _signature_errors(name, own, member)
        elif own is None and name not in settings:
            yield f"it has no attribute {name}; add a field, a class variable or a property"
        elif isinstance(own, FunctionType) and name not in settings:
            yield f"its {name} is a method, but is read as an attribute; write @property above it"


def _signature_errors(name: str, own: Any, member: FunctionType) -> Iterator[str]:
    """Why a method cannot be called with the arguments of the protocol's method, by position."""
    try:
        parameters = list(inspect.signature(own.__func__ if isinstance(own, classmethod) else own).parameters.values())
    except (TypeError, ValueError):
        if not callable(own):
            yield f"its {name} is no method; it gets the arguments {_parameters(member)}"
        return  # built in, without a signature
    parameters = parameters if isinstance(own, staticmethod) else parameters[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return
    needed = [*inspect.signature(member).parameters][1:]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = [*positional[len(needed) :], *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]
    if missing := needed[len(positional) :]:
        yield f"its method {name} lacks {', '.join(missing)}; the arguments are {_parameters(member)}"
    if extra := [p.name for p in others if p.default is p.empty]:
        yield (
            f"its method {name} needs {', '.join(extra)}, which it does not get; the arguments are "
            f"{_parameters(member)}; give others a default"
        )


def _parameters(member: FunctionType) -> str:
    return f"({', '.join([*inspect.signature(member).parameters][1:])})"
