"""The denoising of a response in the terminal, forward pass by forward pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

COLORS = ("red", "yellow", "green")  # confidence of an unmasked token: below 0.5, below 0.9, above


def denoising_steps(
    token_texts: Sequence[str], unmask_step: Sequence[int], confidence: Sequence[float], cut: bool = False
) -> Iterator[Text]:
    """One line per forward pass. Masked tokens are dots, new tokens are coloured by confidence, anchors underlined.

    With `cut` the last forward pass is the one-step cut of temporal pruning, and is marked.
    """
    last = max(unmask_step)
    for step in range(last + 1):
        is_cut = cut and step == last
        line = Text.assemble((f"{step + 1:>4}{'*' if is_cut else ' '} ", "dim"))  # a style of the line dims all of it
        for text, unmasked_at, probability in zip(token_texts, unmask_step, confidence, strict=True):
            if unmasked_at > step:
                line.append("·", "dim")
            elif unmasked_at < 0:
                line.append(text, "underline")
            else:
                color = COLORS[(probability >= 0.5) + (probability >= 0.9)]
                new = f"bold{' reverse' if is_cut else ''} {color}"
                line.append(text, new if unmasked_at == step else "default")
        yield line


def animate(console: Console, frames: Sequence[Text], seconds: float = 0.08) -> None:
    """In a terminal, shows the frames one after the other on one line. Elsewhere prints one line per frame."""
    if not console.is_terminal:
        for frame in frames:
            console.print(frame)
        return
    with Live(console=console, auto_refresh=False) as display:
        for frame in frames:
            display.update(frame, refresh=True)
            time.sleep(seconds)


def legend(cut: bool, anchors: bool) -> Text:
    """The meaning of the colours and marks."""
    line = Text.assemble(("confidence when unmasked: ", "dim"))
    for color, label in zip(COLORS, ("below 0.5", "0.5 to 0.9", "above 0.9"), strict=True):
        line.append(f"{label}  ", color)
    if anchors:
        line.append("anchor", "underline").append("  ")
    if cut:
        line.append("* one-step cut", "reverse")
    return line
