"""Rows of a dataset, each with its location: JSON, CSV or Parquet, or a dataset on the Hugging Face hub."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from stipule.errors import RecipeError

FILE_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".parquet")

_ARRAY = re.compile(r"\s*\[\s*(\{|\Z)")  # not [1], which is a line of JSON lines

# Datasets on the hub that need a configuration name.
_CONFIG_NAMES = {"openai/gsm8k": "main"}


def read_rows(source: str) -> Iterator[tuple[str, Any]]:
    """(location, row) of a file or of `owner/name:split` on the hub.

    Raises RecipeError, with file and line, for a line that cannot be read, and if the source does not exist.
    """
    path = Path(source)
    if path.is_file():
        yield from read_file_rows(path)
    elif source.endswith(FILE_SUFFIXES) or source.count("/") != 1:
        raise RecipeError(
            f"there is no file {source!r}; give JSON lines, a JSON array, CSV, Parquet, or a name on the hub as "
            "owner/name:split"
        )
    else:
        yield from _hub_rows(source)


def read_file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(location, row) of a file; its contents tell Parquet and a JSON array from JSON lines."""
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if is_parquet or path.suffix == ".parquet":
        yield from _dataset_rows("parquet", path)
    elif path.suffix == ".csv":
        yield from _csv_rows(path)
    elif _is_json_array(path):
        yield from _dataset_rows("json", path)
    else:
        yield from _json_lines(path)


def _open_text(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _is_json_array(path: Path) -> bool:
    try:
        with _open_text(path) as text:
            return bool(_ARRAY.match(text.read(4096)))
    except (OSError, UnicodeDecodeError, EOFError):
        return False  # the reader of JSON lines says what is wrong


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(location, row) of JSON lines, plain or compressed with gzip."""
    number = 0
    try:
        with _open_text(path) as lines:
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


def _load_dataset(source: str) -> Callable[..., Any]:
    """`datasets.load_dataset`. Importing it takes a second, and only these sources need it."""
    try:
        from datasets import load_dataset
    except ImportError as cause:
        raise RecipeError(
            f"{source!r} is read by datasets, which is not installed: pip install 'stipule[hub]'; JSON lines and CSV "
            "need nothing"
        ) from cause
    return load_dataset


def _dataset_rows(kind: str, path: Path) -> Iterator[tuple[str, Any]]:
    load_dataset = _load_dataset(str(path))
    number = 0
    try:
        # Streaming reads the file itself; otherwise a copy would be written to the user's cache.
        for number, row in enumerate(load_dataset(kind, data_files=str(path), split="train", streaming=True), 1):
            yield f"{path}, row {number}", row
    except Exception as cause:  # datasets and pyarrow raise many types; the message must name the file
        name = "Parquet" if kind == "parquet" else "a JSON array of objects with the same columns"
        raise RecipeError(
            f"{path} cannot be read as {name} after row {number}: {cause}; check that it is complete, or write JSON "
            "lines: one object a line"
        ) from cause


def _hub_rows(source: str) -> Iterator[tuple[str, Any]]:
    load_dataset = _load_dataset(source)
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
