"""The rows of `stipule reproduce published`: each point alone, and each left out."""

import pytest
import yaml

from stipule.config.recipe import dump_recipe, load_recipe
from stipule.reproduce.published import NEEDS, POINTS, PUBLISHED_ROWS, overrides_of, row_name

TESTBED = "reproduce/sudoku_low_confidence"


def settings_of(overrides):
    recipe = yaml.safe_load(dump_recipe(load_recipe(TESTBED, overrides)))
    return {
        f"{section}.{key}": value
        for section in recipe
        if isinstance(recipe[section], dict)
        for key, value in recipe[section].items()
    }


def changed(first, second):
    return {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}


@pytest.mark.parametrize("point", POINTS)
def test_a_point_alone_and_the_same_point_left_out_change_the_same_settings(point):
    paper, published = settings_of(overrides_of([])), settings_of(PUBLISHED_ROWS["published"].overrides)
    base = settings_of(overrides_of([NEEDS[point]])) if point in NEEDS else paper
    alone = changed(base, settings_of(PUBLISHED_ROWS[row_name("paper_with", point)].overrides))
    left_out = changed(published, settings_of(PUBLISHED_ROWS[row_name("published_without", point)].overrides))
    assert alone
    if point in NEEDS.values():  # what needs it is left out with it
        assert alone <= left_out
    else:
        assert alone == left_out


def test_every_difference_between_the_two_belongs_to_a_point():
    paper, published = settings_of(overrides_of([])), settings_of(PUBLISHED_ROWS["published"].overrides)
    by_point = {key for point in POINTS for key in changed(paper, settings_of(overrides_of([NEEDS.get(point), point])))}
    assert changed(paper, published) == by_point
