"""Pre-training: eq. 3 as a loss, and the base model can be loaded."""

import math

import pytest
import torch

from stipule.errors import RecipeError
from stipule.models.loading import ModelConfig, load_policy
from stipule.training.pretrain import Pretraining, PretrainRecipe, Shape, pretrain
from tests.toys import COUNTDOWN


def test_pretraining_lowers_the_loss_and_the_base_can_be_loaded(tmp_path):
    recipe = PretrainRecipe(
        name="tiny/x",
        task=COUNTDOWN,
        shape=Shape(width=32, layers=1, heads=2, mlp=64),
        pretraining=Pretraining(gen_length=24, steps=60, batch_size=16),
    )
    losses = []
    policy = pretrain(recipe, tmp_path / "base", lambda step, loss: losses.append(loss))
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    loaded = load_policy(ModelConfig(path=str(tmp_path / "base")))
    for (name, one), (_, other) in zip(
        policy.model.state_dict().items(), loaded.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pretraining(steps=0), "1 or more"),
        (lambda: Pretraining(t_min=0.0), "must lie in"),
        (lambda: Shape(width=30, heads=4), "multiple of 2 x heads"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_the_untrained_loss_is_that_of_uniform_guessing(tmp_path):
    recipe = PretrainRecipe(
        name="tiny/x",
        task=COUNTDOWN,
        shape=Shape(width=32, layers=1, heads=2, mlp=64),
        pretraining=Pretraining(gen_length=24, steps=1, batch_size=64),
    )
    losses = []
    policy = pretrain(recipe, tmp_path / "base", lambda step, loss: losses.append(loss))
    assert losses[0] == pytest.approx(math.log(policy.vocab_size), rel=0.35)
