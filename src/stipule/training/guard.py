"""The run's record held against its alarms: told, written down, and, where asked, the end of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stipule.errors import AlarmError
from stipule.training.alarms import Alarms, Event, not_a_number
from stipule.training.folder import RunFolder


class Guard:
    """Knows every line of the run so far, so that a resumed run raises what the uninterrupted one would."""

    def __init__(self, alarms: Alarms, folder: RunFolder, watch: Callable[[str, Mapping[str, Any]], None], step: int):
        self.alarms, self.folder, self.watch = alarms, folder, watch
        # Another rank may not have dropped the lines after the checkpoint yet.
        self.lines = [line for line in folder.read_metrics() if line["step"] <= step]

    def check(self, line: dict[str, Any]) -> None:
        """Adds `alarms` to the line where there are any, and tells the watcher of those that are new."""
        ringing = {event["name"] for event in self.lines[-1].get("alarms", [])} if self.lines else set()
        self.lines.append(line)
        if events := self.alarms.raised(self.lines):
            line["alarms"] = events
            for event in events:
                if event["name"] not in ringing:
                    self.watch("alarm", {"step": line["step"], **event})

    def broken(self, step: int, cause: Exception, name: str) -> None:
        """Writes down a step that could not be finished: nothing of it but its alarm."""
        event: Event = {"name": name, "key": "policy/loss", "value": None, "limit": None, "words": str(cause)}
        if name == "not_a_number":
            event = not_a_number(str(cause).split(";")[0])
        self.folder.append_metrics({"step": step, "alarms": [event]})
        self.watch("alarm", {"step": step, **event})

    def last_good(self) -> Path | None:
        """The newest checkpoint from before the first alarm, which is never removed; None while all is quiet."""
        first = next((line["step"] for line in self.lines if line.get("alarms")), None)
        if first is None:
            return None
        return max((p for p in self.folder.checkpoints.glob("step-*") if int(p.name[5:]) < first), default=None)

    def end_if_asked(self) -> None:
        """Raises AlarmError at an alarm where `alarms.stop` is set."""
        events = self.lines[-1].get("alarms", [])
        if not (self.alarms.stop and events):
            return
        good = self.last_good()
        go_back = (
            f"the last good checkpoint is {good}; start from it anew with model.path={good / 'model'} and the remedy"
            if good
            else "no checkpoint was saved before the alarm; start anew with the remedy or a smaller training.save_every"
        )
        raise AlarmError(
            f"step {self.lines[-1]['step']}: {events[0]['words']}. The run ends here because alarms.stop is true, and "
            f"nothing was saved since; {go_back}"
        )
