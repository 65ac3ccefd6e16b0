"""Trackers (wandb, tensorboard, ...) that receive a copy of metrics.jsonl, through accelerate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from stipule.atomic_io import make_folder
from stipule.errors import RecipeError

Tracker = Literal["trackio", "wandb", "tensorboard", "mlflow"]


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raises RecipeError for a tracker whose package is not installed. Called before any model is loaded."""
    for name in names:
        if find_spec(name) is None:
            raise RecipeError(
                f"tracking contains {name}, which is not installed; run: pip install 'stipule[{name}]', or remove it "
                "(metrics.jsonl is written in any case)"
            )


class Trackers:
    """The open trackers of one run. Without names it does nothing."""

    def __init__(self, names: Sequence[Tracker], run: Path, recipe: Mapping[str, Any]):
        self.open: list[Any] = []
        if not names:
            return
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers read from it whether this is the main process
        for name in names:
            tracker_class = LOGGER_TYPE_TO_CLASS[name]
            folder = [run / "tracking"] if tracker_class.requires_logging_directory else []
            if folder:
                make_folder(folder[0])
            tracker = tracker_class(run.name, *folder)
            if hasattr(tracker, "start"):
                tracker.start()
            tracker.store_init_configuration(flat(recipe))
            self.open.append(tracker)

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of one line of metrics.jsonl, at its step."""
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
        for tracker in self.open:
            tracker.log(numbers, step=line["step"])

    def close(self) -> None:
        for tracker in self.open:
            tracker.finish()


def flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """A recipe with dotted keys and plain values, which every tracker accepts."""
    result: dict[str, int | float | str | bool] = {}
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return result
