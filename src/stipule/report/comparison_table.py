"""What `stipule compare` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each method against the first."""
    several = len(rows[0]["differences"]) > 1
    table = Table(title=f"Paired with {', '.join(rows[0]['first'])}", title_justify="left")
    test = "seeds to decide" if several else "McNemar's p"
    for column in ("evaluation", "first", "this", "won / lost problems", "difference, 95 % interval", test, "verdict"):
        table.add_column(column, justify="left" if column in ("evaluation", "verdict") else "right")
    for row in rows:
        low, high = row["interval"]
        verdict = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
        needed = row.get("seeds_to_decide")
        table.add_row(
            "\n".join(row["second"]),
            "\n".join(f"{one:.1%}" for one, _ in row["accuracy"]),
            "\n".join(f"{other:.1%}" for _, other in row["accuracy"]),
            "\n".join(f"{won} / {lost}" for _, lost, won, _ in row["counts"]),
            f"{row['difference']:+.1%} ({low:+.1%} to {high:+.1%})",
            (str(needed) if needed else "-") if several else f"{row['p_value']:.3g}",
            verdict,
        )
    return table
