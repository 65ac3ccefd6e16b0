"""Recipes: what is wrong is said before any model loads."""

import re
from dataclasses import replace

import pytest

from stipule.errors import RecipeError
from stipule.plan.shape import published_config
from stipule.config.protocol import load_protocol
from stipule.config.recipe import dump_recipe, load_recipe, parse_recipe, read_yaml, recipe_folder, recipe_for_model
from stipule.training.cost import static_memory, step_cost
from stipule.training.pretrain import PretrainRecipe

SUDOKU = {"task": {"kind": "sudoku"}}


@pytest.mark.parametrize(
    ("data", "overrides", "words"),
    [
        ({"trainin": {}}, [], "trainin is not a key of a recipe; did you mean training?"),
        ({"sampler": {"blok": 3}}, [], "sampler.blok is not a key of sampler; did you mean block?"),
        ({"task": {"kind": "sudoko"}}, [], "kind is 'sudoko'; allowed: sudoku, countdown"),
        ({"task": {}}, [], "say which kind is meant"),
        ({}, ["model.lora.rnk=2"], "did you mean rank?"),
        ({}, ["pruning.spatial.ratio=1.2"], "must lie in [0, 1); try 0.05"),
        ({}, ["pruning.spatial.ratio=0.1", "pruning.spatial.source=none"], "there is no source of anchors"),
        ({}, ["pruning.temporal.cutoff=-1"], "must lie in [0, 1)"),
        ({}, ["training.num_generations=1"], "needs 2 or more; try 6"),
        ({}, ["training.steps=abc"], "training.steps is 'abc'"),
        ({}, ["training.steps=0"], "training.steps is 0; it must be 1 or more"),
        ({}, ["sampler.block_length=33"], "it must divide sampler.gen_length"),
        ({}, ["objective.epsilon=2"], "objective.epsilon is 2"),
        ({}, ["optimizer.learning_rate=0"], "must be above 0"),
        ({}, ["training.steps"], "not of the form section.key=value"),
        ({}, ["sampler=3"], "sampler is 3"),
    ],
)
def test_a_wrong_recipe_says_what_to_do(data, overrides, words):
    with pytest.raises(RecipeError) as error:
        parse_recipe(SUDOKU | data, overrides)
    assert words in str(error.value)


def test_yaml_1_1_numbers_and_overrides_are_read_as_numbers():
    found = parse_recipe(SUDOKU | {"optimizer": {"learning_rate": "3e-6"}}, ["optimizer.weight_decay=1e-2"])
    assert (found.optimizer.learning_rate, found.optimizer.weight_decay) == (3e-6, 0.01)


def test_a_resolved_recipe_loads_as_itself(tmp_path):
    found = load_recipe("quickstart", ["model.lora.rank=4", "training.seed=7"])
    (tmp_path / "again.yaml").write_text(dump_recipe(found))
    assert load_recipe(str(tmp_path / "again.yaml")) == found


def test_a_child_changes_only_what_it_names(tmp_path):
    (tmp_path / "parent.yaml").write_text(
        "task: {kind: sudoku, blanks: [6, 8]}\nsampler: {length: 16, steps: 16, block: 8}\n"
    )
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\nsampler: {steps: 8}\n")
    found = load_recipe(str(tmp_path / "child.yaml"))
    assert (found.sampler.gen_length, found.sampler.steps, found.task.blanks) == (16, 8, (6, 8))
    (tmp_path / "other.yaml").write_text("extends: parent.yaml\ntask: {kind: countdown}\n")
    assert load_recipe(str(tmp_path / "other.yaml")).task.kind == "countdown"


def test_defaults_are_table_8():
    found = parse_recipe(SUDOKU)
    assert (found.optimizer.learning_rate, found.optimizer.beta1, found.optimizer.beta2) == (3e-6, 0.9, 0.99)
    assert (found.optimizer.weight_decay, found.training.num_iterations, found.training.num_generations) == (0.1, 4, 6)
    assert (found.objective.epsilon, found.objective.beta, found.estimator.num_samples) == (0.2, 0.04, 3)
    assert (found.sampler.gen_length, found.sampler.temperature) == (256, 0.9)
    assert found.training.prompts_per_step * found.training.num_generations == 6 * 2  # batch x accumulation


def test_every_shipped_recipe_is_valid():
    paths = sorted(p for p in recipe_folder().rglob("*.yaml") if p.parent.name != "launch")
    assert paths
    for path in paths:
        if path.parent.name == "protocols":
            protocol = load_protocol(path.stem)
            for task in protocol.tasks:
                recipe_for_model("nowhere", fixed=protocol.recipe_sections(task))
            continue
        data = read_yaml(path)
        if "pretraining" in data:
            load_recipe(str(path), kind=PretrainRecipe)
            continue
        recipe = load_recipe(str(path))
        shape = published_config(recipe.model.path)[0]
        assert step_cost(recipe).total > 0 and static_memory(recipe, shape).weights > 0


def test_recipes_of_the_paper_say_which_row_and_what_is_expected():
    paths = sorted((recipe_folder() / "paper").glob("*.yaml"))
    assert {int(path.name[5]) for path in paths} == {2, 3, 4, 5, 6, 7}
    for path in paths:
        first = path.read_text().splitlines()[0]
        expected = r"\d\d\.\d\d % after [\d,]+ s there; A800 80GB \(8 assumed\); not run by us\."
        assert re.fullmatch(rf"# Table {path.name[5]}, .*: {expected}", first), path


def test_every_method_and_task_of_llada_8b_has_a_recipe_with_and_without_pruning():
    folder = recipe_folder() / "llada-8b"
    for task in ("gsm8k", "math", "countdown", "sudoku"):
        for method in ("grpo_elbo", "diffu_grpo", "spg"):
            plain, pruned = (load_recipe(str(folder / f"{task}_{method}{stp}.yaml")) for stp in ("", "_stp"))
            assert plain.task.kind == task
            assert (plain.pruning.spatial.ratio, plain.pruning.temporal.cutoff) == (0, 0)
            assert (pruned.pruning.spatial.ratio, pruned.pruning.temporal.cutoff) == (0.05, 0.05)
            assert replace(pruned, pruning=plain.pruning) == plain
            # Theorem 4.1 with anchors in every block: 117 of 128 calls.
            assert (step_cost(plain).nfe_per_rollout, step_cost(pruned).nfe_per_rollout) == (128, 117)


def test_a_recipe_that_is_not_there_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean quickstart.yaml"):
        load_recipe("quikstart.yaml")
