"""All rows and tables of `stipule reproduce` by name."""

from __future__ import annotations

from collections.abc import Mapping

from stipule.errors import RecipeError
from stipule.reproduce.paper import PAPER_ROWS, PAPER_TABLES, Row, Table
from stipule.reproduce.published import PUBLISHED_ROWS, PUBLISHED_TABLE

ROWS: Mapping[str, Row] = {**PAPER_ROWS, **PUBLISHED_ROWS}
TABLES: Mapping[str, Table] = {**PAPER_TABLES, "published": PUBLISHED_TABLE}


def table_of(name: str) -> Table:
    """The table of this name. Raises RecipeError for an unknown one."""
    if name not in TABLES:
        raise RecipeError(f"the table is {name!r}; allowed: {', '.join(TABLES)}, or all (the paper's)")
    return TABLES[name]
