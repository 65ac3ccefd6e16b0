"""Checks the run's record against its alarms: reports them, writes them down, and ends the run if requested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stipule.errors import AlarmError
from stipule.training.alarms import Alarms, Event, not_a_number
from stipule.training.run_folder import RunFolder


class AlarmMonitor:
    """Holds every line of the run so far, so a resumed run raises the same alarms as the uninterrupted one."""

    def __init__(self, alarms: Alarms, folder: RunFolder, watch: Callable[[str, Mapping[str, Any]], object], step: int):
        self.alarms, self.folder, self.watch = alarms, folder, watch
        # Another rank may not have removed the lines after the checkpoint yet.
        self.lines = [line for line in folder.read_metrics() if line["step"] <= step]

    def check(self, line: dict[str, Any]) -> None:
        """Adds `alarms` to the line if there are any, and reports those that the line before did not have."""
        before = {event["name"] for event in self.lines[-1].get("alarms", [])} if self.lines else set()
        self.lines.append(line)
        if events := self.alarms.raised(self.lines):
            line["alarms"] = events
            for event in events:
                if event["name"] not in before:
                    self.watch("alarm", {"step": line["step"], **event})

    def record_failure(self, step: int, cause: Exception, name: str) -> None:
        """Writes a line for a step that could not be finished; it contains only the alarm."""
        event: Event = {"name": name, "key": "policy/loss", "value": None, "limit": None, "message": str(cause)}
        if name == "not_a_number":
            event = not_a_number(str(cause).split(";")[0])
        self.folder.append_metrics({"step": step, "alarms": [event]})
        self.watch("alarm", {"step": step, **event})

    def last_good_checkpoint(self) -> Path | None:
        """The newest checkpoint before the first alarm, which is never removed; None if there was no alarm."""
        first = next((line["step"] for line in self.lines if line.get("alarms")), None)
        if first is None:
            return None
        return max((p for p in self.folder.checkpoints.glob("step-*") if int(p.name[5:]) < first), default=None)

    def stop_if_requested(self) -> None:
        """Raises AlarmError at an alarm if `alarms.stop` is set."""
        events = self.lines[-1].get("alarms", [])
        if not (self.alarms.stop and events):
            return
        good = self.last_good_checkpoint()
        advice = (
            f"the last good checkpoint is {good}; start a new run from it with model.path={good / 'model'} and the "
            "advice above"
            if good
            else "no checkpoint was saved before the alarm; start again with the advice above or a smaller "
            "training.save_every"
        )
        raise AlarmError(
            f"step {self.lines[-1]['step']}: {events[0]['message']}. The run ends here because alarms.stop is true, "
            f"and nothing was saved since; {advice}"
        )
