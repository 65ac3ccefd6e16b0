"""The table of `stipule compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each method compared with the first, paired by problem and seed."""
    has_seeds = len(rows[0]["differences"]) > 1
    table = Table(title=f"Compared with {', '.join(rows[0]['first'])} (paired)", title_justify="left")
    test = "seeds needed" if has_seeds else "McNemar's p"
    columns = (
        "evaluation", "accuracy of the first", "accuracy", "won / lost problems", "difference, 95 % interval", test,
        "verdict",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("evaluation", "verdict") else "right")
    for row in rows:
        low, high = row["interval"]
        verdict = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
        seeds_needed = row.get("seeds_to_decide")
        table.add_row(
            "\n".join(row["second"]),
            "\n".join(f"{first:.1%}" for first, _ in row["accuracy"]),
            "\n".join(f"{second:.1%}" for _, second in row["accuracy"]),
            "\n".join(f"{won} / {lost}" for _, lost, won, _ in row["counts"]),
            f"{row['difference']:+.1%} ({low:+.1%} to {high:+.1%})",
            (str(seeds_needed) if seeds_needed else "-") if has_seeds else f"{row['p_value']:.3g}",
            verdict,
        )
    return table
