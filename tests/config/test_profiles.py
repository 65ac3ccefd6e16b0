"""`profile: fast` and `profile: published_stp`: what it sets, what wins, and what contradicts it."""

import pytest

from stipule.config import profiles
from stipule.config.recipe import dump_recipe, load_recipe, parse_recipe
from stipule.errors import RecipeError

WRITTEN_OUT = [
    "sampler.confidence_threshold=0.9",
    "pruning.temporal.kind=confident",
    "pruning.temporal.cutoff=0.5",
    "pruning.temporal.threshold=0.9",
]


@pytest.fixture(autouse=True)
def processor_without_bfloat16_units(monkeypatch):
    monkeypatch.setattr(profiles, "has_bfloat16_units", lambda: False)
    monkeypatch.setattr(profiles, "best_device", lambda: "cpu")


def test_a_profile_equals_its_settings_written_out():
    fast = load_recipe("tiny/grpo_elbo", ["profile=fast"])
    assert fast == load_recipe("tiny/grpo_elbo", WRITTEN_OUT)
    assert fast != load_recipe("tiny/grpo_elbo")
    assert fast == load_recipe("tiny/grpo_elbo", [*WRITTEN_OUT, "profile=fast"])  # written with equal values
    assert fast == parse_recipe({**load_data("tiny/grpo_elbo"), "profile": "fast"})
    assert "profile" not in dump_recipe(fast)  # a run's recipe names every setting


def load_data(name):
    from stipule.config.recipe import find_recipe, read_yaml

    return read_yaml(find_recipe(name))


def test_other_settings_of_the_same_sections_are_kept():
    recipe = load_recipe("tiny/grpo_elbo", ["profile=fast", "sampler.temperature=0.7", "pruning.spatial.ratio=0.1"])
    assert (recipe.sampler.temperature, recipe.sampler.confidence_threshold) == (0.7, 0.9)
    assert (recipe.pruning.spatial.ratio, recipe.pruning.temporal.kind) == (0.1, "confident")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampler.confidence_threshold=0.8"], "sets sampler.confidence_threshold=0.9, but the recipe has .*=0.8"),
        (["sampler.confidence_threshold=null"], "but the recipe has sampler.confidence_threshold=None"),
        (["pruning.temporal.cutoff=0.125"], "sets pruning.temporal.cutoff=0.5"),
        (["pruning.temporal.kind=constant"], "sets pruning.temporal.kind=confident"),
        (["sampler.remasking=random"], "remasking random, which does not use confidence"),
        (["profile=slow"], "profile is 'slow'; .* allowed: fast"),
        (["profile=3"], "profile is 3; .* allowed: fast"),
        (["profile.fast=true"], "profile is {'fast': True}"),
    ],
)
def test_what_contradicts_a_profile_is_refused(overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny/grpo_elbo", ["profile=fast", *overrides])
    with pytest.raises(RecipeError, match="sets pruning.temporal.kind=confident, but the recipe has .*=constant"):
        load_recipe("tiny/grpo_elbo_stp", ["profile=fast", "pruning.temporal.kind=constant"])


def test_the_published_stp_is_one_word_whose_two_fractions_may_be_set():
    recipe = load_recipe("published/math", ["profile=published_stp"])
    assert (recipe.pruning.spatial.ratio, recipe.pruning.temporal.cutoff) == (0.05, 0.05)
    assert (recipe.pruning.temporal.tail, recipe.sampler.block_schedule) == ("sample", "fixed")
    assert recipe.pruning.spatial.retokenize and recipe.pruning.spatial.protect == "answer_content"
    other = load_recipe("published/math", ["pruning.spatial.ratio=0.15", "profile=published_stp"])
    assert (other.pruning.spatial.ratio, other.pruning.spatial.ratio_of) == (0.15, "eligible")


def test_all_settings_that_contradict_a_profile_are_named_at_once():
    with pytest.raises(
        RecipeError, match=r"estimator.kind=elbo; it sets optimizer.max_grad_norm=0.2, .*=1.0; leave est"
    ):
        load_recipe("reproduce/sudoku", ["profile=published_stp"])
    with pytest.raises(RecipeError, match="sets pruning.temporal.tail=sample, but the recipe has .*=argmax"):
        load_recipe("published/math", ["profile=published_stp", "pruning.temporal.tail=argmax"])
    with pytest.raises(RecipeError, match="allowed: fast, published_stp"):
        load_recipe("published/math", ["profile=published"])


@pytest.mark.parametrize(
    ("units", "device", "faster"), [(True, "cpu", True), (False, "cuda", True), (False, "cpu", False)]
)
def test_float32_weights_are_multiplied_in_bfloat16_only_where_that_gains(monkeypatch, units, device, faster):
    monkeypatch.setattr(profiles, "has_bfloat16_units", lambda: units)
    monkeypatch.setattr(profiles, "best_device", lambda: device)
    assert load_recipe("tiny/grpo_elbo", ["profile=fast"]).model.autocast == faster
    # What is written wins: precision is no part of the method.
    assert not load_recipe("tiny/grpo_elbo", ["profile=fast", "model.autocast=false"]).model.autocast
    assert not load_recipe("tiny/grpo_elbo", ["profile=fast", "model.dtype=bfloat16"]).model.autocast
