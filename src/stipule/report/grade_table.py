"""What `stipule grade` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from stipule.evaluation.grader_disagreements import Disagreement
from stipule.evaluation.regrade import Tally


def grade_table(tallies: Mapping[str, Tally], protocol: str) -> Table:
    """Counts by task, with what was counted."""
    table = Table(title=f"Graded by {protocol}", title_justify="left")
    table.add_column("task")
    for column in ("correct", "of", "share", "95 % interval", "not decided in time"):
        table.add_column(column, justify="right")
    table.add_column("counted are")
    for name, tally in tallies.items():
        low, high = tally.interval
        cells = name == "sudoku" and protocol == "d1"
        table.add_row(
            name,
            str(tally.correct),
            str(tally.total),
            f"{tally.correct / tally.total:.2%}",
            f"{low:.1%} to {high:.1%}",
            str(tally.undecided),
            "blank cells" if cells else "puzzles solved" if name == "sudoku" else "responses",
        )
    return table


def disagreement_table(differences: Sequence[Disagreement], counts: Mapping[str, int]) -> Table:
    """Differences by task and kind; for Sudoku with the blank cells that are counted differently."""
    table = Table(title="Where d1 and strict differ", title_justify="left")
    for column in ("task", "valued higher by", "kind"):
        table.add_column(column)
    for column in ("responses", "of"):
        table.add_column(column, justify="right")
    grouped = Counter((d.response.task, d.higher_protocol, d.kind) for d in differences)
    cells: Counter[tuple[str, str, str]] = Counter()
    for d in differences:
        cells[d.response.task, d.higher_protocol, d.kind] += abs(d.d1 - d.strict)
    for key, number in sorted(grouped.items(), key=lambda item: (item[0][0], item[0][1], -item[1])):
        task, above, kind = key
        extra = f" ({cells[key]} cells)" if task == "sudoku" else ""
        table.add_row(task, above, kind, f"{number}{extra}", str(counts[task]))
    return table


def disagreement_lines(differences: Sequence[Disagreement], shown: int = 160) -> Iterator[str]:
    """One line for each difference: where, the gold answer, the end of the response, and the kind."""
    for d in differences:
        end = repr(d.response.response.replace("<|endoftext|>", "")[-shown:].encode("utf-8", "replace").decode())
        gold = d.response.problem.data.get(
            "gold", d.response.problem.data.get("solution", d.response.problem.data.get("target"))
        )
        yield f"{d.response.location}: {d.response.task}, {d.higher_protocol} values it higher; {d.kind}\n  gold {gold!r}; ends in {end}"
