"""Trackers that mirror metrics.jsonl, through accelerate; the file is the record, whatever they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from stipule.errors import RecipeError

Tracker = Literal["trackio", "wandb", "tensorboard", "mlflow"]


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raises RecipeError, before any model loads, for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise RecipeError(
                f"tracking asks for {name}, which is not installed; run: pip install 'stipule[{name}]', or remove it "
                "(metrics.jsonl is written in any case)"
            )


class Trackers:
    """The trackers of one run, open; with none asked for it does nothing."""

    def __init__(self, names: Sequence[Tracker], run: Path, recipe: Mapping[str, Any]):
        self.open: list[Any] = []
        if not names:
            return
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers ask it whether they are the main process
        for name in names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            place = [run / "tracking"] if kind.requires_logging_directory else []
            if place:
                place[0].mkdir(parents=True, exist_ok=True)
            tracker = kind(run.name, *place)
            if hasattr(tracker, "start"):
                tracker.start()
            tracker.store_init_configuration(flat(recipe))
            self.open.append(tracker)

    def log(self, line: Mapping[str, Any]) -> None:
        """The numbers of a metrics line, at its step."""
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
        for tracker in self.open:
            tracker.log(numbers, step=line["step"])

    def close(self) -> None:
        for tracker in self.open:
            tracker.finish()


def flat(recipe: Mapping[str, Any], above: str = "") -> dict[str, int | float | str | bool]:
    """A recipe as dotted keys and plain values: what every tracker can show."""
    found: dict[str, int | float | str | bool] = {}
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return found
