"""Rows of a dataset, each with its location: JSON lines, CSV, or a dataset on the Hugging Face hub."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stipule.errors import RecipeError

FILE_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".csv")

# Datasets on the hub that need a configuration name.
_CONFIG_NAMES = {"openai/gsm8k": "main"}


def read_rows(source: str) -> Iterator[tuple[str, Any]]:
    """(location, row) of a file or of `owner/name:split` on the hub.

    Raises RecipeError, with file and line, for a line that cannot be read, and if the source does not exist.
    """
    path = Path(source)
    if path.is_file():
        yield from _csv_rows(path) if path.suffix == ".csv" else read_json_rows(path)
    elif source.endswith(FILE_SUFFIXES) or source.count("/") != 1:
        raise RecipeError(
            f"there is no file {source!r}; give JSON lines, CSV, or a name on the hub as owner/name:split"
        )
    else:
        yield from _hub_rows(source)


def read_json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(location, row) of JSON lines, plain or compressed with gzip."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except (ValueError, RecursionError) as cause:
                    raise RecipeError(f"{path}, line {number} is not JSON: {cause}; correct or remove it") from cause
    except (OSError, UnicodeDecodeError, EOFError) as cause:
        raise RecipeError(
            f"{path} cannot be read after line {number}: {cause}; check that it is complete and UTF-8"
        ) from cause


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
        dataset = load_dataset(name, _CONFIG_NAMES.get(name), split=split or "train")
    except Exception as cause:  # the hub's client raises many types; the message must name the dataset
        raise RecipeError(
            f"the dataset {source!r} cannot be loaded: {cause}; check the name and the connection to the hub"
        ) from cause
    for number, row in enumerate(dataset):
        yield f"{source}, row {number}", row


def column_names(row: Any) -> str:
    """The names of a row's columns, or the type of a value that is not a row."""
    return ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__


def get_column(location: str, row: Any, *names: str) -> Any:
    """The value of the first of these columns that the row has; RecipeError if it has none of them."""
    if isinstance(row, Mapping):
        for name in names:
            if row.get(name) is not None:
                return row[name]
    raise RecipeError(
        f"{location} has no column {' or '.join(names)}; its columns: {column_names(row)}; rename or add one"
    )
