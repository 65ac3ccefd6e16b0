"""A gamma with a schedule: over RL steps and by difficulty."""

import pytest
import torch

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.errors import RecipeError
from stipule.rollouts.anchor_ratio_schedule import Annealed, ByDifficulty
from stipule.rollouts.pruning import SpatialPruning, select_anchors

DATA = {
    "task": {"kind": "sudoku"},
    "model": {"path": "tiny/sudoku"},
    "sampler": {"gen_length": 16, "steps": 16, "block_length": 16},
}


def test_annealing_is_a_straight_line_that_ends():
    spatial = SpatialPruning(ratio=0.5, schedule=Annealed(final_ratio=0.1, steps=4))
    assert [round(spatial.ratio_at(step), 6) for step in range(6)] == [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]


@pytest.mark.parametrize(("prune", "expected"), [("easy", [0.4, 0.0, 0.1, 0.4]), ("hard", [0.4, 0.4, 0.3, 0.0])])
def test_difficulty_is_the_accuracy_in_the_previous_epoch(prune, expected):
    spatial = SpatialPruning(ratio=0.4, schedule=ByDifficulty(prune=prune))
    assert [round(spatial.ratio_at(9, solved), 6) for solved in (None, 0.0, 0.25, 1.0)] == expected


def test_each_row_has_its_own_number_of_anchors():
    generator = torch.Generator().manual_seed(0)
    eligible, confidence = torch.ones(3, 20, dtype=torch.bool), torch.rand(3, 20, generator=generator)
    noise = torch.rand(3, 20, generator=generator)
    several = select_anchors(eligible, confidence, [0.0, 0.1, 0.5], "confident", noise)
    assert several.sum(1).tolist() == [0, 2, 10]
    for row, ratio in enumerate((0.0, 0.1, 0.5)):
        assert torch.equal(several[row], select_anchors(eligible, confidence, ratio, "confident", noise)[row])


@pytest.mark.parametrize(
    "schedule", [{"kind": "annealed", "final_ratio": 0.3}, {"kind": "annealed", "final_ratio": 0.25}]
)
def test_a_final_ratio_not_below_the_ratio_is_refused(schedule):
    with pytest.raises(RecipeError, match="the ratio is the largest fraction that is fixed"):
        parse_recipe(DATA | {"pruning": {"spatial": {"ratio": 0.25, "schedule": schedule}}})


def test_a_schedule_needs_a_ratio_above_0():
    with pytest.raises(RecipeError, match="raise pruning.spatial.ratio"):
        parse_recipe(DATA | {"pruning": {"spatial": {"schedule": {"kind": "by_difficulty"}}}})


def test_recipes_without_a_kind_have_the_constants_of_the_paper():
    recipe = parse_recipe(DATA | {"pruning": {"spatial": {"ratio": 0.05}, "temporal": {"cutoff": 0.05}}})
    assert (recipe.pruning.temporal.kind, recipe.pruning.spatial.schedule) == ("constant", None)
    sure = parse_recipe(DATA, ["pruning.temporal.kind=confident", "pruning.temporal.threshold=0.8"])
    again = parse_recipe(__import__("yaml").safe_load(dump_recipe(sure)))
    assert again == sure and sure.pruning.temporal.threshold == 0.8
    with pytest.raises(RecipeError, match="kind confident has it"):
        parse_recipe(DATA, ["pruning.temporal.threshold=0.8"])
    with pytest.raises(RecipeError, match="allowed: constant, confident"):
        parse_recipe(DATA, ["pruning.temporal.kind=sure"])
