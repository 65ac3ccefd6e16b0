"""The tables of `stipule grade`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from stipule.evaluation.grader_disagreements import Disagreement
from stipule.evaluation.regrade import Tally


def grade_table(tallies: Mapping[str, Tally], protocol: str) -> Table:
    """Correct answers by task, and the unit that is counted."""
    table = Table(title=f"Graded by {protocol}", title_justify="left")
    table.add_column("task")
    for column in ("correct", "of", "accuracy", "95 % interval", "not graded in time"):
        table.add_column(column, justify="right")
    table.add_column("counted unit")
    for name, tally in tallies.items():
        low, high = tally.interval
        counts_cells = name == "sudoku" and protocol == "d1"
        table.add_row(
            name,
            str(tally.correct),
            str(tally.total),
            f"{tally.correct / tally.total:.2%}",
            f"{low:.1%} to {high:.1%}",
            str(tally.undecided),
            "blank cells" if counts_cells else "puzzles solved" if name == "sudoku" else "responses",
        )
    return table


def disagreement_table(disagreements: Sequence[Disagreement], counts: Mapping[str, int]) -> Table:
    """Disagreements by task and kind; for Sudoku also the number of blank cells that are counted differently."""
    table = Table(title="Disagreements of d1 and strict", title_justify="left")
    for column in ("task", "higher grade from", "kind"):
        table.add_column(column)
    for column in ("responses", "of"):
        table.add_column(column, justify="right")
    responses = Counter((d.response.task, d.higher_protocol, d.kind) for d in disagreements)
    cells: Counter[tuple[str, str, str]] = Counter()
    for d in disagreements:
        cells[d.response.task, d.higher_protocol, d.kind] += abs(d.d1 - d.strict)
    for key, count in sorted(responses.items(), key=lambda item: (item[0][0], item[0][1], -item[1])):
        task, higher_protocol, kind = key
        suffix = f" ({cells[key]} cells)" if task == "sudoku" else ""
        table.add_row(task, higher_protocol, kind, f"{count}{suffix}", str(counts[task]))
    return table


def disagreement_lines(disagreements: Sequence[Disagreement], num_characters: int = 160) -> Iterator[str]:
    """One entry per disagreement: location, kind, the gold answer, and the last characters of the response."""
    for d in disagreements:
        text = d.response.response.replace("<|endoftext|>", "")[-num_characters:]
        end = repr(text.encode("utf-8", "replace").decode())
        data = d.response.problem.data
        gold = data.get("gold", data.get("solution", data.get("target")))
        yield (
            f"{d.response.location}: {d.response.task}, higher grade from {d.higher_protocol}; {d.kind}\n"
            f"  gold answer {gold!r}; the response ends with {end}"
        )
