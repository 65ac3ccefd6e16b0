"""Plain data against the dataclass that it describes: unknown settings, kinds, and types."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from stipule.errors import RecipeError


def validate(kind: Any, data: Mapping[str, Any], prefix: str = "") -> Any:
    """The dataclass with these settings; `prefix` is the section of the recipe with a dot.

    Raises RecipeError, with all errors, for an unknown setting, kind, or a value of another type.
    """
    selected = _check_keys(kind, data, prefix)
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as cause:
        # For a union, pydantic reports the errors of every member: keep those of the member that `kind` selects.
        errors = [e for e in cause.errors() if _is_selected(e["loc"], selected)]
        raise RecipeError("; ".join(dict.fromkeys(_explain(e, prefix) for e in errors))) from cause


def kinds_of(hint: Any) -> list[str]:
    """The names of the built-in parts of a setting: the kinds of its dataclasses, or its fixed values."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = [str(kind) for option in options if is_dataclass(option) for kind in _kinds(option) if kind is not None]
    return kinds or [value for option in options for value in get_args(option) if isinstance(value, str)]


def _is_selected(location: tuple[Any, ...], selected: set[str]) -> bool:
    names = {str(name) for name in location}
    return {n for n in names if n[:1].isupper()} <= selected and not any(n.startswith("is-instance[") for n in names)


def _check_keys(kind: Any, data: Any, prefix: str) -> set[str]:
    """The names of the dataclasses that the data selects.

    Raises RecipeError for an unknown setting, with the nearest and the allowed ones; pydantic would ignore it.
    """
    if not isinstance(data, Mapping):
        _check_is_section(kind, data, prefix)
        return set()
    choice = _dataclass_for(kind, data, prefix)
    if choice is None:
        return set()
    selected = {choice.__name__}
    hints = get_type_hints(choice)
    allowed = [f.name for f in fields(choice)]
    for key, value in data.items():
        if key not in allowed:
            others = [str(_kind(o)) for o in get_args(kind) if is_dataclass(o) and key in {f.name for f in fields(o)}]
            if others:
                hint = f"kind {' or '.join(others)} has it; remove it or change {prefix}kind"
            else:
                nearest = difflib.get_close_matches(str(key), allowed, n=1)
                hint = f"did you mean {nearest[0]}? " if nearest else ""
                hint += f"allowed: {', '.join(allowed)}"
            section = " ".join([prefix.rstrip(".") or "a recipe", *([str(data["kind"])] if "kind" in data else [])])
            raise RecipeError(f"{prefix}{key} is not a setting of {section}; {hint}")
        selected |= _check_keys(hints[key], value, f"{prefix}{key}.")
    return selected


def _check_is_section(kind: Any, value: Any, prefix: str) -> None:
    """Raises RecipeError for a plain value where only dataclasses are allowed."""
    options = [o for o in (get_args(kind) or (kind,)) if is_dataclass(o)]
    is_union = get_origin(kind) in (Union, types.UnionType)
    if is_union and options and not is_dataclass(value) and not (value is None and type(None) in get_args(kind)):
        section, names = prefix.rstrip("."), kinds_of(kind)
        raise RecipeError(
            f"{section} is {value!r}; it is a section with settings, e.g. {section}.kind={names[0]}; allowed kinds: "
            f"{', '.join(names)}"
        )


def _dataclass_for(kind: Any, data: Mapping[str, Any], prefix: str) -> Any:
    """The dataclass for a mapping; if there are several, the one with the mapping's `kind`."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    options = tuple(o for o in options if is_dataclass(o))
    matching = [o for o in options if "kind" not in data or data["kind"] in _kinds(o)]
    if options and "kind" in data and not matching:
        allowed = ", ".join(str(kind) for o in options for kind in _kinds(o))
        raise RecipeError(f"{prefix}kind is {data['kind']!r}; allowed: {allowed}")
    if len(matching) > 1:
        raise RecipeError(f"{prefix}kind is missing; allowed: {', '.join(str(_kind(o)) for o in options)}")
    return matching[0] if matching else None


def _kind(option: Any) -> Any:
    return next((f.default for f in fields(option) if f.name == "kind"), None)


def _kinds(option: Any) -> tuple[Any, ...]:
    """The kinds of a dataclass: one, or several if it handles several."""
    hint = get_type_hints(option).get("kind")
    return get_args(hint) or (_kind(option),)


def _explain(error: Any, prefix: str) -> str:
    # The names of the union's members are no settings.
    keys = (str(key) for key in error["loc"] if not str(key)[:1].isupper() and not str(key).startswith("literal["))
    path = prefix + ".".join(keys)
    path = path.rstrip(".")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, RecipeError):
        return str(cause)
    return f"{path or 'the recipe'} is {error['input']!r}: {error['msg'].lower()}"
