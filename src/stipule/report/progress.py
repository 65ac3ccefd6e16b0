"""How far a command is: a bar in a terminal; without one, a line at least every 30 seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 30.0  # without a terminal, between two lines


class ProgressRate:
    """The fraction of some work that is done, and an estimate of the time left."""

    def __init__(self, done: int = 0, total: int | None = None):
        self.first, self.done, self.total = done, done, total
        self.started = time.monotonic()

    def update(self, done: int, total: int | None = None) -> None:
        self.done, self.total = done, total or self.total

    @property
    def seconds_left(self) -> float | None:
        """None if nothing was done yet, or if the total is not known."""
        if not self.total or self.done <= self.first:
            return None
        return (time.monotonic() - self.started) / (self.done - self.first) * max(0, self.total - self.done)

    def __str__(self) -> str:
        elapsed = time.monotonic() - self.started
        if not self.total:
            return f"{duration(elapsed)} so far"
        count = f"{self.done:,} of {self.total:,} ({self.done / self.total:.0%}), {duration(elapsed)}"
        if self.done >= self.total:
            return count
        left = self.seconds_left
        return f"{count}, time left not known yet" if left is None else f"{count}, about {duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `3 min 10 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class LinePrinter:
    """Prints `describe()` whenever nothing was printed for LINE_SECONDS. Does nothing in a terminal.

    A thread prints, so a line appears also while one long calculation runs.
    """

    def __init__(self, console: Console, describe: Callable[[], str]):
        self.console, self.describe = console, describe
        self.last = time.monotonic()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> LinePrinter:
        if not self.console.is_terminal:
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        if self.thread.ident is not None:
            self.thread.join()

    def print(self, line: str) -> None:
        """Prints a line at once; the console flushes it."""
        self.last = time.monotonic()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _run(self) -> None:
        while not self.stopped.wait(max(0.01, self.last + LINE_SECONDS - time.monotonic())):
            if time.monotonic() - self.last >= LINE_SECONDS:
                self.print(self.describe())


def progress_bar(console: Console) -> Progress:
    """A bar with count, elapsed time and remaining time."""
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
def bar(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields the function `progress(done, total)` that updates the bar, or the line.

    The first call says what was done before, so that the time left is that of this command's own work.
    """
    if console.is_terminal:
        with progress_bar(console) as progress:
            task = progress.add_task(description, total=None)

            def advance(done: int, total: int) -> None:
                is_first = progress.tasks[0].total is None
                (progress.reset if is_first else progress.update)(task, completed=done, total=total)

            yield advance
        return
    rates: list[ProgressRate] = []

    def update(done: int, total: int) -> None:
        if not rates:
            rates.append(ProgressRate(done, total))
        rates[0].update(done, total)

    def describe() -> str:
        return f"{description}: {rates[0] if rates else 'starting'}"

    with LinePrinter(console, describe) as lines:
        yield update
    lines.print(describe())


@contextmanager
def parts(console: Console, description: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """Yields a function to call with the name of each part of the work before it starts.

    `total`: the number of parts, of which each is taken to be as long as the others; None if not known.
    """
    if console.is_terminal:
        with console.status(description) as status:
            yield lambda name: status.update(f"{description}: {name}")
        return
    pace, names = ProgressRate(0, total), [""]

    def start(name: str) -> None:
        if names[-1]:
            pace.update(pace.done + 1)
        names.append(name)

    def describe() -> str:
        return f"{description}: {names[-1] and names[-1] + ', '}{'part ' if total else ''}{pace}"

    with LinePrinter(console, describe):
        yield start
