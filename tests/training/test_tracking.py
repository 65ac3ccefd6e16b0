"""Trackers get the metrics of every step; a missing tracker is refused before anything is loaded."""

import importlib.util
import json
from pathlib import Path

import pytest

from stipule.config.recipe import parse_recipe
from stipule.errors import RecipeError
from stipule.training.tracking import Trackers, check_trackers, flat


def test_a_missing_tracker_is_refused_with_its_install_command(monkeypatch):
    monkeypatch.setattr("stipule.training.tracking.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'stipule\[wandb\]'"):
        check_trackers(["wandb"])
    check_trackers([])


def test_an_unknown_tracker_is_refused():
    with pytest.raises(RecipeError, match="tracking"):
        parse_recipe({"task": {"kind": "sudoku"}, "tracking": ["papertrail"]})


def test_every_tracker_has_an_extra():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name in ("trackio", "wandb", "tensorboard", "mlflow"):
        assert f"{name} = [" in text


def test_a_recipe_is_flattened_to_plain_values():
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": "f"}) == {"a.b": 1, "a.c.d": "None", "e": "f"}


def test_a_tracker_gets_the_numbers_of_each_step_and_the_recipe(monkeypatch, tmp_path):
    calls = []

    class Recorder:
        requires_logging_directory = True

        def __init__(self, name, folder):
            calls.append((name, Path(folder).is_dir()))

        def store_init_configuration(self, values):
            calls.append(values)

        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    monkeypatch.setattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS", {"tensorboard": Recorder})
    trackers = Trackers(["tensorboard"], tmp_path / "run", {"a": {"b": 1}})
    trackers.log({"step": 3, "reward/mean": 0.5, "alarms": [{"name": "ratio"}]})
    trackers.close()
    assert calls == [("run", True), {"a.b": 1}, (3, {"reward/mean": 0.5}), "finished"]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_files_hold_the_curve(tmp_path):
    trackers = Trackers(["tensorboard"], tmp_path / "run", json.loads('{"training": {"steps": 2}}'))
    for step in (1, 2):
        trackers.log({"step": step, "reward/mean": step / 4})
    trackers.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = {p.parent for p in (tmp_path / "run" / "tracking").rglob("events.out.*") if _holds(p)}
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert [(e.step, e.value) for e in accumulator.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5)]


def _holds(path):
    return b"reward/mean" in path.read_bytes()
