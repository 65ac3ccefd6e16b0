"""All rows and tables of `stipule reproduce` by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stipule.errors import RecipeError
from stipule.reproduce.frontier import FRONTIER_ROWS, FRONTIER_TABLE
from stipule.reproduce.paper import PAPER_ROWS, PAPER_TABLES, Row, Table
from stipule.reproduce.published import POINT_ROWS, PUBLISHED_ROWS, PUBLISHED_TABLE
from stipule.reproduce.tail import TAIL_ROWS, TAIL_TABLE

ROWS: Mapping[str, Row] = {**PAPER_ROWS, **PUBLISHED_ROWS, **POINT_ROWS, **TAIL_ROWS, **FRONTIER_ROWS}
TABLES: Mapping[str, Table] = {
    **PAPER_TABLES,
    "published": PUBLISHED_TABLE,
    "tail": TAIL_TABLE,
    "frontier": FRONTIER_TABLE,
}


def table_of(name: str, only: Sequence[str] = ()) -> Table:
    """The table of this name; of its rows and claims those about `only` these rows, if any are given.

    Raises RecipeError for an unknown table or row.
    """
    if name not in TABLES:
        raise RecipeError(f"the table is {name!r}; allowed: {', '.join(TABLES)}, or all (the paper's)")
    table = TABLES[name]
    if not only:
        return table
    unknown = [row for row in only if row not in table.rows]
    if unknown:
        raise RecipeError(
            f"--rows has {', '.join(unknown)}, which {name} does not have; allowed: {', '.join(table.rows)}"
        )
    claims = tuple(claim for claim in table.claims if {claim.better, claim.worse} <= set(only))
    return replace(table, rows=tuple(row for row in table.rows if row in only), claims=claims)


def rows_of(name: str, published_code: bool = False, only: Sequence[str] = ()) -> tuple[str, ...]:
    """The rows that a table needs; with `published_code` each trained row a second time, as the authors run it.

    Raises RecipeError for an unknown table, or for `published_code` with one that is not the paper's.
    """
    rows = table_of(name, only).rows
    if not published_code:
        return rows
    if name not in PAPER_TABLES:
        raise RecipeError(
            f"--published-code with {name}: only tables of the paper have it ({', '.join(PAPER_TABLES)}); leave it out"
        )
    return tuple(dict.fromkeys((*rows, *(published_row(row) for row in rows if published_row(row) in ROWS))))


def published_row(row: str) -> str:
    """The name of this row as the authors run it."""
    return f"{row}_published"
