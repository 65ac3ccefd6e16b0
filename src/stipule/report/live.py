"""The live display of a run: progress, reward curve, where seconds and model calls go."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 48, top: float | None = None) -> str:
    """The values as a row of bars from 0 to `top` (their maximum), averaged down to at most `width` of them."""
    if not values:
        return ""
    bins = min(width, len(values))
    cuts = [len(values) * i // bins for i in range(bins + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    most = top or max(means) or 1.0
    return "".join(BLOCKS[min(len(BLOCKS) - 1, max(0, int(mean / most * len(BLOCKS))))] for mean in means)


def progress_bar(console: Console) -> Progress:
    """One bar with count, time spent and time left."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def bar(console: Console, words: str) -> Iterator[Any]:
    """Within, the value is a `progress(done, total)` for one stretch of work."""
    with progress_bar(console) as progress:
        task = progress.add_task(words, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class LiveRun:
    """Watches a training run (`training.loop.Watch`). Without a terminal it prints a line now and then."""

    def __init__(self, console: Console, steps: int, earlier: Sequence[Mapping[str, Any]] = ()):
        self.console, self.steps = console, steps
        self.lines = [line for line in earlier if "reward/mean" in line]  # a broken step has only its alarm
        self.note = ""
        self.alarms: dict[str, str] = {}  # by name: the last sentence
        self.progress = progress_bar(console)
        self.task = self.progress.add_task("training", total=steps, completed=len(self.lines))
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self._draw)

    def __enter__(self) -> LiveRun:
        if self.console.is_terminal:
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.__exit__(kind, error, trace)

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "anchors":
            self.note = f"pre-generating anchors: {data['done']} of {data['total']} problems"
        elif event == "saved":
            self.note = f"saved step {data['step']}"
        elif event == "alarm":
            self.alarms[data["name"]] = f"alarm at step {data['step']}: {data['message']}"
            if not self.console.is_terminal:
                self.console.print(self.alarms[data["name"]], markup=False, highlight=False, soft_wrap=True)
        elif event == "step":
            self.lines.append(data)
            self.progress.update(self.task, completed=data["step"])
            if not self.console.is_terminal and data["step"] % max(1, self.steps // 10) == 0:
                self.console.print(self._line(data))

    def _line(self, data: Mapping[str, Any]) -> str:
        return (
            f"step {data['step']:>5}/{self.steps}  reward {data['reward/mean']:.3f}  "
            f"solved {data['reward/accuracy']:.0%}  {data['time/total']:.0f} s  {data['nfe/total']:,} model calls"
        )

    def _draw(self) -> Group:
        parts: list[Any] = [self.progress]
        if self.lines:
            parts.append(self._table(self.lines[-1]))
        parts += [Text(words, style="bold red") for words in self.alarms.values()]
        if self.note:
            parts.append(Text(self.note, style="dim"))
        return Group(*parts)

    def _table(self, last: Mapping[str, Any]) -> Table:
        def history(key: str) -> list[float]:
            return [line[key] for line in self.lines if key in line]

        grid = Table.grid(padding=(0, 2))
        grid.add_row("reward", f"{last['reward/mean']:.3f}", Text(sparkline(history("reward/mean")), style="cyan"))
        grid.add_row(
            "solved",
            f"{last['reward/accuracy']:.0%}",
            Text(sparkline(history("reward/accuracy"), top=1.0), style="green"),
        )
        if found := [line for line in self.lines if "eval/solved" in line]:
            share = found[-1]["eval/solved"] / found[-1]["eval/total"]
            grid.add_row("held out", f"{share:.0%}", Text(f"greedy, at step {found[-1]['step']}", style="dim"))
        grid.add_row(
            "learning from",
            f"{last['reward/frac_nonzero_std']:.0%}",
            Text("of the groups: their rewards differ", style="dim"),
        )
        seconds = {k.split("/")[1]: v for k, v in last.items() if k.startswith("time/") and k != "time/total"}
        grid.add_row("seconds a step", f"{sum(seconds.values()):.2f}", _split(seconds, "{:.2f}"))
        calls = {k.split("/")[1]: v for k, v in last.items() if k.startswith("nfe/") and k != "nfe/total"}
        grid.add_row("model calls", f"{sum(calls.values()):,.0f}", _split(calls, "{:,.0f}"))
        return grid


def _split(parts: Mapping[str, float], form: str) -> Text:
    return Text(" · ".join(f"{name} {form.format(value)}" for name, value in parts.items()), style="dim")
