"""A response as it appears, model call by model call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

SHADES = ("red", "yellow", "green")  # below 0.5, below 0.9, above: confidence when the token was committed


def denoising_steps(pieces: Sequence[str], revealed: Sequence[int], confidence: Sequence[float]) -> Iterator[Text]:
    """One line a model call: hidden tokens as dots, fresh ones coloured by confidence, anchors underlined."""
    for call in range(max(revealed) + 1):
        line = Text(f"{call + 1:>4}  ", style="dim")
        for piece, when, sure in zip(pieces, revealed, confidence, strict=True):
            if when > call:
                line.append("·", "dim")
            elif when < 0:
                line.append(piece, "underline")
            else:
                shade = SHADES[(sure >= 0.5) + (sure >= 0.9)]
                line.append(piece, f"bold {shade}" if when == call else "default")
        yield line
