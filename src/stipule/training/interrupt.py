"""Ctrl-C: the first one stops the loop after its step, the second stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """A stop was requested; the step was finished and saved."""


@contextmanager
def stop_after_step() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT sets a flag; the value is a function that reads it."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread, which is the only one that may handle signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, before)
