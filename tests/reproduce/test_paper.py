"""The paper's numbers were copied without a slip: they agree with one another and are counts of problems."""

import pytest

from stipule.errors import RecipeError
from stipule.config.recipe import load_recipe, recipe_folder
from stipule.reproduce.paper import ROWS, TABLES, table_of

PROBLEMS = {"math": 500, "gsm8k": 1319, "countdown": 256}


def test_accuracies_are_shares_of_the_problems_there_are():
    odd = {
        (name, task)
        for name, row in ROWS.items()
        for task, percent in row.accuracy.items()
        if abs(round(percent / 100 * PROBLEMS[task]) / PROBLEMS[task] * 100 - percent) > 0.0051
    }
    assert odd == {("spg", "math")}  # 36.10 % is no number of 500 problems


def test_the_papers_own_improvements_follow_from_its_rows():
    """Last row of table 2, speed-ups of table 3."""

    def gain(row, over, task):
        return 100 * (ROWS[row].accuracy[task] / ROWS[over].accuracy[task] - 1)

    def saved(row, over, task="math"):
        return 100 * (1 - ROWS[row].seconds[task] / ROWS[over].seconds[task])

    assert [gain("stp", "elbo", t) for t in PROBLEMS] == pytest.approx([5.85, 0.56, 81.72], abs=0.01)
    assert [saved("stp", "diffu", t) for t in PROBLEMS] == pytest.approx([13.07, 1.44, 3.43], abs=0.01)
    assert saved("diffu_stp", "diffu") == pytest.approx(29.8, abs=0.05)
    assert saved("spg_stp", "spg") == pytest.approx(7.5, abs=0.05)


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.changes])
def test_every_row_is_a_valid_change_of_the_world(name):
    plain, changed = load_recipe("reproduce/sudoku"), load_recipe("reproduce/sudoku", ROWS[name].changes)
    assert changed != plain
    assert (changed.task, changed.training, changed.sampler) == (plain.task, plain.training, plain.sampler)


def test_every_world_that_ships_trains_every_row():
    for world in sorted((recipe_folder() / "reproduce").glob("*.yaml")):
        for row in ROWS.values():
            load_recipe(str(world), row.changes or ())


def test_claims_are_about_rows_of_their_table():
    for table in TABLES.values():
        assert all({claim.better, claim.worse} <= set(table.rows) for claim in table.claims)
    with pytest.raises(RecipeError, match="there are table2"):
        table_of("table9")
