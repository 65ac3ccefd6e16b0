"""Pre-training: eq. 3 as a loss, and the base model can be loaded."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from stipule.config.recipe import recipe_for_model
from stipule.errors import RecipeError
from stipule.evaluation.evaluate import evaluate
from stipule.models.loading import ModelConfig, load_policy
from stipule.training.pretrain import (
    Pretraining,
    PretrainRecipe,
    Shape,
    draw_block_masks,
    draw_masks,
    masked_loss,
    new_policy,
    pretrain,
)
from stipule.types import Prompts
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
        (lambda: Shape(block_length=0), "try 4"),
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


# Block models


BLOCK_BASE = PretrainRecipe(
    name="tiny/x",
    task=COUNTDOWN,
    shape=Shape(width=32, layers=1, heads=2, mlp=64, block_length=4),
    pretraining=Pretraining(gen_length=24, steps=60, batch_size=16),
)


def test_a_block_base_learns_and_is_loaded_and_sampled_in_its_blocks(tmp_path):
    losses = []
    policy = pretrain(BLOCK_BASE, tmp_path / "base", lambda step, loss: losses.append(loss))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    recipe = recipe_for_model(str(tmp_path / "base"))
    loaded = load_policy(recipe.model)
    assert loaded.family.name == "sdar"
    assert loaded.block_length == recipe.sampler.block_length == 4
    problems = recipe.task.problems("test")[:8]
    results = [evaluate(p, recipe.task, problems, recipe.sampler).texts for p in (policy, loaded)]
    assert results[0] == results[1]


def test_the_mean_of_the_block_loss_is_the_enumerated_elbo():
    """Responses of two blocks, of 1 and 3 tokens: every mask of each block, by its probability under t uniform."""
    policy = new_policy(replace(BLOCK_BASE.shape, block_length=3), COUNTDOWN, 0, False)
    generator = torch.Generator().manual_seed(0)
    prompts = Prompts(torch.tensor([[2, 5, 6, 7, 3]]), torch.ones(1, 5, dtype=torch.bool))
    completion_ids = torch.randint(4, policy.vocab_size, (1, 4), generator=generator)
    block_index = torch.tensor([[0, 1, 1, 1]])
    expected = 0.0
    for block in ([0], [1, 2, 3]):
        for size in range(1, len(block) + 1):
            for subset in itertools.combinations(block, size):
                noisy_ids = completion_ids.clone()
                noisy_ids[:, list(subset)] = policy.mask_id
                visible = torch.cat([prompts.prompt_ids, completion_ids[:, : block[0]], noisy_ids[:, block]], 1)
                targets = torch.zeros_like(visible, dtype=torch.bool)
                targets[:, [5 + i for i in subset]] = True
                logps = policy.logits(visible, None, targets).log_softmax(1).detach()
                nats = -logps.gather(1, completion_ids[0, list(subset)][:, None]).sum()
                # The integral of t^(k-1) (1-t)^(n-k) over (0, 1]: the probability of these masks by their weight 1/t.
                expected += float(nats) / (size * math.comb(len(block), size))
    rows = 8_000
    masked, loss_weights = draw_block_masks(block_index.expand(rows, -1), generator)
    drawn = torch.cat([masked.float(), loss_weights.masked_fill(~masked, 0)], 1)
    distinct, count = drawn.unique(dim=0, return_counts=True)
    assert len(distinct) == 7  # the first block is always masked; the second has 7 masks
    with torch.no_grad():
        losses = [masked_loss(policy, prompts, completion_ids, row[None, :4] > 0, row[None, 4:]) for row in distinct]
    mean = float((torch.stack(losses) * count).sum()) / rows
    assert 4 * mean == pytest.approx(expected, rel=0.01)


def test_the_masks_of_a_block_are_as_many_as_the_strata_say():
    block_index = torch.arange(16)[None].expand(64, -1) // 4
    masked, loss_weights = draw_block_masks(block_index, torch.Generator().manual_seed(0))
    counts = masked.view(64, 4, 4).sum(2)
    for block in range(4):  # 64 strata: 16 of each number of masks
        assert counts[:, block].bincount().tolist() == [0, 16, 16, 16, 16]
    assert torch.equal(loss_weights, (4 / counts).repeat_interleave(4, 1))
    assert (counts.sum(1) == 10).float().mean() > 0.9  # the blocks of a row are masked differently


def test_the_masks_of_full_attention_are_those_of_the_bundled_models():
    """One ratio a row, stratified, then the noise: changing it would change the bundled models."""
    masked, loss_weights = draw_masks(4, 6, 0.1, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    t = 0.1 + 0.9 * (torch.arange(4) + torch.rand(4, generator=generator)) / 4
    assert torch.equal(masked, torch.rand(4, 6, generator=generator) < t[:, None])
    assert torch.allclose(loss_weights, 1 / t[:, None].expand(-1, 6))
