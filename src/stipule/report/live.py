"""The live display of a run: progress, reward and accuracy, seconds and forward passes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stipule.report.progress import LinePrinter, ProgressRate, duration, progress_bar

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 48, top: float | None = None) -> str:
    """The values as a row of bars from 0 to `top` (default: the maximum), averaged to at most `width` bars."""
    if not values:
        return ""
    bins = min(width, len(values))
    edges = [len(values) * i // bins for i in range(bins + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    highest = top or max(means) or 1.0
    return "".join(BLOCKS[min(len(BLOCKS) - 1, max(0, int(mean / highest * len(BLOCKS))))] for mean in means)


def stderr_console() -> Console:
    """Where a run from Python shows its progress."""
    return Console(stderr=True)


class LiveRun:
    """Shows the events of a training run (`training.anchor_source.Watch`). Without a terminal it prints lines."""

    def __init__(self, console: Console, steps: int, earlier: Sequence[Mapping[str, Any]] = ()):
        self.console, self.steps = console, steps
        self.lines = [line for line in earlier if "reward/mean" in line]  # the line of a failed step has only an alarm
        self.note = ""
        self.alarms: dict[str, str] = {}  # by name: the latest message
        self.anchors: ProgressRate | None = None  # of making them
        self.pace: ProgressRate | None = None  # of the steps, from the first one in this process
        self.progress = progress_bar(console)
        self.task = self.progress.add_task("training", total=steps, completed=len(self.lines))
        self.display = Live(console=console, refresh_per_second=4, get_renderable=self._render)
        self.printer = LinePrinter(console, self._status)

    def __enter__(self) -> LiveRun:
        if self.console.is_terminal:
            self.display.__enter__()
        self.printer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.printer.__exit__()
        if self.console.is_terminal:
            self.display.__exit__(kind, error, trace)

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "anchors":
            if self.anchors is None:
                self.anchors = ProgressRate(data["done"], data["total"])
            self.anchors.update(data["done"], data["total"])
            self.note = f"pre-generating anchors: {self.anchors}"
        elif event == "saved":
            self.note = f"saved step {data['step']}"
        elif event == "alarm":
            self.alarms[data["name"]] = f"alarm at step {data['step']}: {data['message']}"
            if not self.console.is_terminal:
                self.printer.print(self.alarms[data["name"]])
        elif event == "step":
            if self.pace is None:
                self.pace = ProgressRate(data["step"], self.steps)
            self.pace.update(data["step"])
            self.lines.append(data)
            self.progress.update(self.task, completed=data["step"])
            if not self.console.is_terminal and data["step"] % max(1, self.steps // 10) == 0:
                self.printer.print(self._line(data))

    def _status(self) -> str:
        """What a run without a terminal prints if it has printed nothing for a while."""
        if self.pace is not None:
            return self._line(self.lines[-1])
        return f"training: {'loading the model' if self.anchors is None else self.note}"

    def _line(self, data: Mapping[str, Any]) -> str:
        remaining = self.steps - data["step"]
        seconds = (self.pace and self.pace.seconds_left) or remaining * data["time/total"] / data["step"]
        left = f", about {duration(seconds)} left" if remaining > 0 else ""
        return (
            f"step {data['step']:>5}/{self.steps} ({data['step'] / self.steps:.0%}{left})  "
            f"reward {data['reward/mean']:.3f}  accuracy {data['reward/accuracy']:.0%}  {data['time/total']:.0f} s  "
            f"{data['nfe/total']:,} forward passes"
        )

    def _render(self) -> Group:
        renderables: list[Any] = [self.progress]
        if self.lines:
            renderables.append(self._table(self.lines[-1]))
        renderables += [Text(message, style="bold red") for message in self.alarms.values()]
        if self.note:
            renderables.append(Text(self.note, style="dim"))
        return Group(*renderables)

    def _table(self, last: Mapping[str, Any]) -> Table:
        def history(key: str) -> list[float]:
            return [line[key] for line in self.lines if key in line]

        grid = Table.grid(padding=(0, 2))
        grid.add_row("reward", f"{last['reward/mean']:.3f}", Text(sparkline(history("reward/mean")), style="cyan"))
        grid.add_row(
            "accuracy",
            f"{last['reward/accuracy']:.0%}",
            Text(sparkline(history("reward/accuracy"), top=1.0), style="green"),
        )
        if evaluated := [line for line in self.lines if "eval/solved" in line]:
            accuracy = evaluated[-1]["eval/solved"] / evaluated[-1]["eval/total"]
            grid.add_row("eval accuracy", f"{accuracy:.0%}", Text(f"greedy, step {evaluated[-1]['step']}", style="dim"))
        grid.add_row(
            "rewards differ",
            f"{last['reward/frac_nonzero_std']:.0%}",
            Text("of the groups; the others have no advantages", style="dim"),
        )
        seconds = {k.split("/")[1]: v for k, v in last.items() if k.startswith("time/") and k != "time/total"}
        grid.add_row("seconds per step", f"{sum(seconds.values()):.2f}", _by_phase(seconds, "{:.2f}"))
        nfe = {k.split("/")[1]: v for k, v in last.items() if k.startswith("nfe/") and k != "nfe/total"}
        grid.add_row("forward passes", f"{sum(nfe.values()):,.0f}", _by_phase(nfe, "{:,.0f}"))
        return grid


def _by_phase(values: Mapping[str, float], template: str) -> Text:
    return Text(" · ".join(f"{name} {template.format(value)}" for name, value in values.items()), style="dim")
