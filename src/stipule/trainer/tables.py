"""The tables of docs/from-trl.md: every argument of TRL's GRPOConfig, and what becomes of it.

python -m stipule.trainer.tables
"""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields
from itertools import groupby
from typing import Any

from stipule.trainer.arguments import NOT_OFFERED, NOT_OFFERED_BY_THE_TRAINER
from stipule.trainer.config import DiffusionGRPOConfig


def offered_table(defaults_of_trl: dict[str, Any]) -> list[str]:
    """The arguments of DiffusionGRPOConfig; `defaults_of_trl` by name."""
    notes = _comments()
    lines = ["| argument | default | default in TRL | meaning |", "|---|---|---|---|"]
    for field in fields(DiffusionGRPOConfig):
        trl = f"`{defaults_of_trl[field.name]!r}`" if field.name in defaults_of_trl else "not in TRL"
        lines.append(f"| `{field.name}` | `{_default(field)!r}` | {trl} | {notes[field.name]} |")
    return lines


def not_offered_table() -> list[str]:
    """The arguments that are not offered, by reason, with the values that are accepted because they change nothing."""
    lines = ["| arguments, and the values that are accepted | why no others |", "|---|---|"]
    for reason, group in groupby(NOT_OFFERED.items(), key=lambda item: item[1].reason):
        names = (f"`{name}={' / '.join(map(repr, argument.accepted))}`" for name, argument in group)
        lines.append(f"| {', '.join(names)} | {reason} |")
    for name, reason in NOT_OFFERED_BY_THE_TRAINER.items():
        lines.append(f"| of the trainer: `{name}=None` | {reason} |")
    return lines


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else None


def _comments() -> dict[str, str]:
    """The comment behind each field in the source, or the comment lines above it."""
    notes, above = {}, ""
    for line in inspect.getsource(DiffusionGRPOConfig).splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            above = f"{above} {comment[1]}".strip()
        elif field := re.match(r"    (\w+): [^#]*?(?:  # (.*))?$", line):
            notes[field[1]] = field[2] or above
            above = ""
        elif not line.strip():
            above = ""
    return notes


if __name__ == "__main__":
    from trl import GRPOConfig

    defaults = {field.name: _default(field) for field in fields(GRPOConfig)}
    print("\n".join([*offered_table(defaults), "", *not_offered_table()]))
