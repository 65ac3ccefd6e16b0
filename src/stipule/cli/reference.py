"""docs/reference.md, from the code: every command, every setting of a recipe, every shipped recipe, the Python names.

python -m stipule.cli.reference > docs/reference.md
"""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stipule.cli.python_api import python_api
from stipule.config.recipe import recipe_folder
from stipule.training.pretrain import PretrainRecipe
from stipule.training.settings import Recipe


def reference() -> str:
    """The whole page."""
    head = [
        "# Reference",
        "",
        "Made from the code by `python -m stipule.cli.reference > docs/reference.md`; a test holds it to that.",
        "",
        "## Commands",
        "",
        "| command | what it does |",
        "|---|---|",
        *(f"| `stipule {name}` | {words} |" for name, words in commands()),
        "",
        "## Settings of a recipe",
        "",
        "For `stipule train RECIPE` and `stipule check RECIPE`. A section is given as `section: {key: value}`, one "
        "setting on the command line as `section.key=value`.",
    ]
    sections = [line for name, kinds in sections_of(Recipe).items() for line in _section(name, kinds)]
    bases = [line for name, kinds in sections_of(PretrainRecipe).items() for line in _section(name, kinds)]
    shipped = [f"| `{name}` | {words} |" for name, words in recipes()]
    return "\n".join(
        [
            *head,
            *sections,
            "",
            "## Settings of a pre-training recipe",
            "",
            "For `stipule pretrain RECIPE section.key=value`.",
            *bases,
            "",
            *python_api(),
            "",
            "## Shipped recipes",
            "",
            "For `stipule train RECIPE`, and those that end in `_base` for `stipule pretrain RECIPE`.",
            "",
            "| recipe | what it is |",
            "|---|---|",
            *shipped,
            "",
        ]
    )


def commands() -> list[tuple[str, str]]:
    """Names and first lines of the commands, those of groups with the group's name before them."""
    import typer

    from stipule.cli import app

    def walk(command: Any, above: str) -> list[tuple[str, str]]:
        if not hasattr(command, "commands"):
            return [(above, (command.help or "").strip().splitlines()[0])]
        return [found for name, inner in command.commands.items() for found in walk(inner, f"{above} {name}".strip())]

    return walk(typer.main.get_command(app), "")


def recipes() -> list[tuple[str, str]]:
    """The shipped recipes and the comment in their first line."""
    folder = recipe_folder()
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        found.append((str(path.relative_to(folder)), first.lstrip("# ").replace("|", "\\|")))
    return found


def sections_of(recipe: type) -> dict[str, list[type]]:
    """The sections of a recipe, dotted where nested, and the dataclasses that each may be."""
    found: dict[str, list[type]] = {}

    def add(name: str, hint: Any) -> None:
        kinds = [option for option in (*get_args(hint), hint) if is_dataclass(option) and isinstance(option, type)]
        if not kinds:
            return
        found[name] = kinds
        for kind in kinds:
            hints = get_type_hints(kind)
            for field in fields(kind):
                add(f"{name}.{field.name}", hints[field.name])

    hints = get_type_hints(recipe)
    for field in fields(recipe):
        add(field.name, hints[field.name])
    plain = [field for field in fields(recipe) if field.name not in found]
    return found | ({"": [recipe]} if plain else {})


def _section(name: str, kinds: list[type]) -> list[str]:
    lines = ["", f"### {name or 'single keys'}"]
    for kind in kinds:
        named = " or ".join(get_args(get_type_hints(kind).get("kind")))
        summary = (inspect.getdoc(kind) or "").strip().splitlines()[0]
        nested = set(sections_of(kind)) if name else set(sections_of(kind)) - {""}
        rows = [f for f in fields(kind) if f.name not in nested and f.name != "kind"]
        lines += ["", f"`kind: {named}`: {summary}" if named else summary]
        if rows:
            said, hints = comments(kind), get_type_hints(kind)
            lines += ["", "| key | default | meaning |", "|---|---|---|"]
            for field in rows:
                words = "; ".join(part for part in (options(hints[field.name]), said.get(field.name, "")) if part)
                lines.append(f"| `{field.name}` | {_default(field)} | {words} |".replace("  |", " |"))
    return lines


def options(hint: Any) -> str:
    """The words that a setting may be, where they are a closed list."""
    if get_origin(hint) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(hint))
    inner = get_args(hint) if get_origin(hint) in (Union, UnionType, tuple) else ()
    return next((words for words in map(options, inner) if words), "")


def comments(kind: type) -> dict[str, str]:
    """What the source says of each field: the comment behind it, or the lines of comment above it."""
    found: dict[str, str] = {}
    above: list[str] = []
    names = {field.name for field in fields(kind)}
    for line in inspect.getsource(kind).splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            above.append(comment[1])
            continue
        field = re.match(r"    (\w+): [^#]*(?:  # (.*))?$", line)
        if field and field[1] in names:
            found[field[1]] = " ".join([*above, *([field[2]] if field[2] else [])]).replace("|", "\\|")
        above = []
    return found


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return "required"
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, bool) or value is None:
        return f"`{words[value]}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


if __name__ == "__main__":
    print(reference(), end="")
