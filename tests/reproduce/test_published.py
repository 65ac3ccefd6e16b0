"""The rows of `stipule reproduce published`: each point alone, and each left out."""

import pytest
import yaml

from stipule.config.recipe import dump_recipe, load_recipe
from stipule.errors import RecipeError
from stipule.reproduce.catalogue import rows_of
from stipule.reproduce.paper import STP, Row
from stipule.reproduce.published import NEEDS, POINT_ROWS, POINTS, PUBLISHED_ROWS, as_published, overrides_of, row_name

TESTBED = "reproduce/sudoku_low_confidence"


def settings_of(overrides):
    filled = Row(title="", accuracy={}, seconds={}, overrides=tuple(overrides)).overrides_for(16)
    return flat(yaml.safe_load(dump_recipe(load_recipe(TESTBED, filled))))


def flat(section, prefix=""):
    """The settings of a recipe by their names with dots."""
    if not isinstance(section, dict):
        return {prefix: section}
    return {
        name: leaf
        for key, value in section.items()
        for name, leaf in flat(value, f"{prefix}.{key}" if prefix else key).items()
    }


def changed(first, second):
    return {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}


@pytest.mark.parametrize("point", POINTS)
def test_a_point_alone_and_the_same_point_left_out_change_the_same_settings(point):
    paper, published = settings_of(overrides_of([])), settings_of(PUBLISHED_ROWS["stp_published"].overrides)
    base = settings_of(overrides_of([NEEDS[point]])) if point in NEEDS else paper
    alone = changed(base, settings_of(POINT_ROWS[row_name("paper_with", point)].overrides))
    left_out = changed(published, settings_of(POINT_ROWS[row_name("published_without", point)].overrides))
    assert alone
    if point in NEEDS.values():  # what needs it is left out with it
        assert alone <= left_out
    else:
        assert alone == left_out


def test_every_difference_between_the_two_belongs_to_a_point():
    paper, published = settings_of(overrides_of([])), settings_of(PUBLISHED_ROWS["stp_published"].overrides)
    by_point = {key for point in POINTS for key in changed(paper, settings_of(overrides_of([NEEDS.get(point), point])))}
    assert changed(paper, published) == by_point


def test_the_row_of_stp_has_every_point_and_rows_without_pruning_only_those_that_are_not_about_it():
    assert settings_of(as_published(STP)) == settings_of(overrides_of(list(POINTS)))
    plain = settings_of(PUBLISHED_ROWS["elbo_published"].overrides)
    assert plain["estimator.kind"] == "mean_log_prob" and plain["advantage.std"] == "sample"
    assert not [key for key in changed(plain, settings_of(())) if key.startswith(("pruning.", "sampler.block_"))]


def test_the_profile_is_every_point_and_the_two_that_change_nothing_on_the_testbeds():
    """Protect and retokenize: no tags there, and a token is a character."""
    same = ["estimator.kind=mean_log_prob", "optimizer.max_grad_norm=0.2"]  # the testbed has other values
    profile = settings_of(["profile=published_stp", *STP, *same])
    points = settings_of(overrides_of(list(POINTS)))
    assert changed(profile, points) == {"pruning.spatial.protect", "pruning.spatial.retokenize"}


def test_the_published_recipes_are_the_profile_and_nothing_else():
    plain = load_recipe("published/gsm8k")
    assert load_recipe("published/gsm8k", ["profile=published_stp"]) == load_recipe("published/gsm8k_stp") != plain


def test_the_rows_of_other_estimators_keep_them():
    for row, kind in (("diffu_stp", "one_step"), ("spg_stp", "spg")):
        settings = settings_of(PUBLISHED_ROWS[f"{row}_published"].overrides)
        assert settings["estimator.kind"] == kind and settings["pruning.temporal.tail"] == "sample"


def test_the_confidence_with_all_tokens_masked_is_only_in_rows_that_choose_anchors_by_it():
    def confidence_of(row):
        return settings_of(PUBLISHED_ROWS[f"{row}_published"].overrides)["pruning.spatial.confidence"]

    assert {row: confidence_of(row) for row in ("stp", "spatial", "stp_truth", "spatial_random", "elbo")} == {
        "stp": "fully_masked",
        "spatial": "fully_masked",
        "stp_truth": "when_unmasked",
        "spatial_random": "when_unmasked",
        "elbo": "when_unmasked",
    }
    truth = settings_of(PUBLISHED_ROWS["stp_truth_published"].overrides)
    assert truth["pruning.spatial.ratio_of"] == "eligible"


def test_each_trained_row_of_a_table_has_one_of_the_authors_beside_it():
    assert rows_of("table2", published_code=True) == (
        "base", "elbo", "diffu", "stp", "elbo_published", "diffu_published", "stp_published",
    )  # fmt: skip
    with pytest.raises(RecipeError, match="only tables of the paper"):
        rows_of("published", published_code=True)
