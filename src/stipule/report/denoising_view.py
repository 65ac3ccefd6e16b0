"""A response as it appears, model call by model call."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

SHADES = ("red", "yellow", "green")  # below 0.5, below 0.9, above: confidence when the token was committed


def denoising_steps(
    pieces: Sequence[str], revealed: Sequence[int], confidence: Sequence[float], cut: bool = False
) -> Iterator[Text]:
    """One line a model call: hidden tokens as dots, fresh ones coloured by confidence, anchors underlined.

    With `cut` the last call is the one-step cut of temporal pruning, and is marked as such.
    """
    last = max(revealed)
    for call in range(last + 1):
        here = cut and call == last
        line = Text(f"{call + 1:>4}{'*' if here else ' '} ", style="dim")
        for piece, when, sure in zip(pieces, revealed, confidence, strict=True):
            if when > call:
                line.append("·", "dim")
            elif when < 0:
                line.append(piece, "underline")
            else:
                shade = SHADES[(sure >= 0.5) + (sure >= 0.9)]
                line.append(piece, f"bold{' reverse' if here else ''} {shade}" if when == call else "default")
        yield line


def animate(console: Console, frames: Sequence[Text], seconds: float = 0.08) -> None:
    """The frames one after the other in one place, where the console is a terminal; line after line elsewhere."""
    if not console.is_terminal:
        for frame in frames:
            console.print(frame)
        return
    with Live(console=console, auto_refresh=False) as live:
        for frame in frames:
            live.update(frame, refresh=True)
            time.sleep(seconds)


def legend(cut: bool, anchors: bool) -> Text:
    """What colours and marks of the frames mean."""
    line = Text("confidence when committed: ", style="dim")
    for shade, words in zip(SHADES, ("below 0.5", "0.5 to 0.9", "above"), strict=True):
        line.append(f"{words}  ", shade)
    if anchors:
        line.append("anchor", "underline").append("  ")
    if cut:
        line.append("* one-step cut", "reverse")
    return line
