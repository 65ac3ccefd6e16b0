"""The copied numbers of the paper agree with each other, and accuracies are numbers of problems."""

import pytest

from stipule.config.recipe import load_recipe, recipe_folder
from stipule.errors import RecipeError
from stipule.reproduce.catalogue import ROWS, TABLES, table_of
from stipule.reproduce.frontier import FRONTIER_ROWS
from stipule.reproduce.paper import PAPER_ROWS, pruned_fractions
from stipule.reproduce.runs import check_rows

PROBLEMS = {"math": 500, "gsm8k": 1319, "countdown": 256}


def test_accuracies_are_fractions_of_the_number_of_problems():
    impossible = {
        (name, task)
        for name, row in PAPER_ROWS.items()
        for task, percent in row.accuracy.items()
        if abs(round(percent / 100 * PROBLEMS[task]) / PROBLEMS[task] * 100 - percent) > 0.0051
    }
    assert impossible == {("spg", "math")}  # 36.10 % of 500 is not a whole number


def test_the_improvements_in_the_paper_follow_from_its_rows():
    """The last row of table 2 and the speed-ups of table 3."""

    def gain(row, baseline, task):
        return 100 * (ROWS[row].accuracy[task] / ROWS[baseline].accuracy[task] - 1)

    def saved(row, baseline, task="math"):
        return 100 * (1 - ROWS[row].seconds[task] / ROWS[baseline].seconds[task])

    assert [gain("stp", "elbo", t) for t in PROBLEMS] == pytest.approx([5.85, 0.56, 81.72], abs=0.01)
    assert [saved("stp", "diffu", t) for t in PROBLEMS] == pytest.approx([13.07, 1.44, 3.43], abs=0.01)
    assert saved("diffu_stp", "diffu") == pytest.approx(29.8, abs=0.05)
    assert saved("spg_stp", "spg") == pytest.approx(7.5, abs=0.05)


@pytest.mark.parametrize("name", [n for n, row in PAPER_ROWS.items() if row.overrides])
def test_every_row_is_a_valid_change_of_the_testbed(name):
    plain, changed = load_recipe("reproduce/sudoku"), load_recipe("reproduce/sudoku", ROWS[name].overrides_for(16))
    assert changed != plain
    assert (changed.task, changed.training, changed.sampler) == (plain.task, plain.training, plain.sampler)


def test_every_row_is_valid_on_every_shipped_testbed():
    for path in sorted((recipe_folder() / "reproduce").glob("*.yaml")):
        check_rows([row for row in ROWS if row not in FRONTIER_ROWS], str(path))
    check_rows(tuple(ROWS), "sudoku_worked")
    with pytest.raises(RecipeError, match="row 'parallel' on the testbed sudoku: .* random, .* another --world"):
        check_rows(tuple(ROWS), "sudoku")


def test_a_table_of_some_rows_has_the_claims_about_them():
    table = table_of("frontier", ("stp", "elbo"))
    assert table.rows == ("elbo", "stp")
    assert [(claim.better, claim.worse) for claim in table.claims] == [("stp", "elbo")] * 2
    with pytest.raises(RecipeError, match="--rows has diffu, which frontier does not have"):
        table_of("frontier", ("diffu",))


def test_pruned_fractions_are_the_papers_where_they_save_a_forward_pass():
    assert pruned_fractions(256) == pruned_fractions(64) == (0.05, 0.1)
    assert pruned_fractions(16) == (0.125, 0.25)  # 0.05 of 16 tokens is less than one
    assert ROWS["stp"].overrides_for(16) == ("pruning.spatial.ratio=0.125", "pruning.temporal.cutoff=0.125")
    assert ROWS["stp"].overrides_for(64) == ("pruning.spatial.ratio=0.05", "pruning.temporal.cutoff=0.05")


def test_claims_are_about_rows_of_their_table():
    for table in TABLES.values():
        assert all({claim.better, claim.worse} <= set(table.rows) for claim in table.claims)
    with pytest.raises(RecipeError, match="allowed: table2"):
        table_of("table9")
