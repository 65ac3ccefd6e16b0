"""A dataset in memory as the file that a recipe names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from stipule.errors import RecipeError
from stipule.tasks.custom import problems_of_rows
from stipule.tasks.problem import Problem


class DatasetFile(NamedTuple):
    """The rows as JSON lines, the name of their file inside the run folder, and the problems in them."""

    name: str
    content: str
    problems: tuple[Problem, ...]


def dataset_file(argument: str, dataset: Any) -> DatasetFile:
    """The file of `train_dataset` or `eval_dataset`: rows with a prompt, in a list or a `datasets.Dataset`.

    The name contains a hash of the rows, so a run cannot be continued with others. Raises RecipeError, with the row,
    for what is no row with a prompt, and for a value that JSON cannot hold.
    """
    if not isinstance(dataset, Iterable) or isinstance(dataset, str | Mapping) or not hasattr(dataset, "__len__"):
        raise RecipeError(
            f"{argument} is a {type(dataset).__name__}; it must be a list of rows (dictionaries), or a "
            "datasets.Dataset, which is one split of a DatasetDict; a file is read by "
            "datasets.load_dataset('json', data_files=FILE, split='train')"
        )
    rows = [(f"{argument}[{number}]", row) for number, row in enumerate(dataset)]
    problems = problems_of_rows(rows, argument)
    content = "".join(f"{_json_line(location, row)}\n" for location, row in rows)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return DatasetFile(f"{argument.removesuffix('_dataset')}-{digest}.jsonl", content, problems)


def _json_line(location: str, row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(row), ensure_ascii=False)
    except (TypeError, ValueError) as cause:
        raise RecipeError(
            f"{location} has a value that JSON cannot hold ({cause}); give texts, numbers, lists and dictionaries"
        ) from cause
