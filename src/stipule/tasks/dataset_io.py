"""Rows of a dataset with where each stands: JSON lines, CSV, or a dataset on the hub, loaded when asked for."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stipule.errors import RecipeError

FILES = (".jsonl", ".json", ".jsonl.gz", ".csv")

# Datasets that cannot be loaded without naming one of their parts.
_PARTS = {"openai/gsm8k": "main"}


def read_rows(source: str) -> Iterator[tuple[str, Any]]:
    """(where, row) of a file or of `owner/name:split` on the hub.

    Raises RecipeError, naming file and line, on a line that cannot be read, and where there is no such source.
    """
    path = Path(source)
    if path.is_file():
        yield from _csv_rows(path) if path.suffix == ".csv" else read_json_rows(path)
    elif source.endswith(FILES) or source.count("/") != 1:
        raise RecipeError(
            f"there is no file {source!r}; give JSON lines, CSV, or a name on the hub as owner/name:split"
        )
    else:
        yield from _hub_rows(source)


def read_json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, row) of JSON lines, plain or packed by gzip."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except (ValueError, RecursionError) as cause:
                    raise RecipeError(f"{path}, line {number} is not JSON: {cause}; correct or remove it") from cause
    except (OSError, UnicodeDecodeError, EOFError) as cause:
        raise RecipeError(f"{path} cannot be read after line {number}: {cause}; is it whole, and UTF-8?") from cause


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise RecipeError(
                        f"{path}, line {reader.line_num} does not have the {len(reader.fieldnames or ())} columns of "
                        "the first line; correct or remove it"
                    )
                yield f"{path}, line {reader.line_num}", row
        except (csv.Error, UnicodeDecodeError) as cause:
            raise RecipeError(
                f"{path}, line {reader.line_num + 1} is not CSV: {cause}; correct or remove it"
            ) from cause


def _hub_rows(source: str) -> Iterator[tuple[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as cause:
        raise RecipeError(f"{source!r} is on the hub, which needs datasets: pip install 'stipule[hub]'") from cause
    name, _, split = source.partition(":")
    try:
        loaded = load_dataset(name, _PARTS.get(name), split=split or "train")
    except Exception as cause:  # whatever the hub's client raises, the user needs to know which dataset it was
        raise RecipeError(
            f"the dataset {source!r} cannot be loaded: {cause}; is the hub within reach, and the name right?"
        ) from cause
    for number, row in enumerate(loaded):
        yield f"{source}, row {number}", row


def column_names(row: Any) -> str:
    """The names of a row's columns, or what it is instead of a row."""
    return ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__


def get_column(where: str, row: Any, *names: str) -> Any:
    """The first of these columns that the row has; RecipeError if it has none."""
    if isinstance(row, Mapping):
        for name in names:
            if row.get(name) is not None:
                return row[name]
    raise RecipeError(
        f"{where} has no column {' or '.join(names)}; its columns: {column_names(row)}; rename or add one"
    )
