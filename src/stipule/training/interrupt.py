"""Ctrl-C and SIGTERM: the loop stops after its step and saves; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Slurm, Kubernetes and torchrun end a program by SIGTERM.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds. torchrun repeats a Ctrl-C to its processes, which the terminal has already sent to them.
SAME_REQUEST = 1.0


class Interrupted(KeyboardInterrupt):
    """A stop was requested by a signal; the step was finished and saved."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class Terminated(KeyboardInterrupt):
    """SIGTERM outside of the steps of a run."""


@contextmanager
def stop_after_step() -> Iterator[Callable[[], int]]:
    """Inside, SIGINT and SIGTERM are only recorded; the value is a function that returns the signal's number, or 0.

    A second SIGINT raises KeyboardInterrupt. A second SIGTERM does nothing: torchrun and Slurm both send one.
    """
    received: list[int] = []
    times: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and times and time.monotonic() - times[0] > SAME_REQUEST:
            raise KeyboardInterrupt
        received.append(number)
        times.append(time.monotonic())

    with _handled(STOP_SIGNALS, handle):
        yield lambda: received[0] if received else 0


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated, so that a command can say what it has kept."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated

    with _handled((signal.SIGTERM,), handle):
        yield


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, `handle` is called for these signals."""
    try:
        before = {number: signal.signal(number, handle) for number in numbers}
    except ValueError:  # not the main thread, which is the only one that may handle signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
