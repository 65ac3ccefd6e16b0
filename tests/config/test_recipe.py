"""Recipes: parsing, inheritance, overrides, and errors before any model loads."""

import json
import re
from dataclasses import replace

import pytest

from stipule.config.protocol import load_protocol
from stipule.config.recipe import dump_recipe, load_recipe, parse_recipe, read_yaml, recipe_folder, recipe_for_model
from stipule.errors import CheckpointError, RecipeError
from stipule.plan.shape import published_config
from stipule.training.cost import static_memory, step_cost
from stipule.training.pretrain import PretrainRecipe
from stipule.training.run_folder import FORMAT

SUDOKU = {"task": {"kind": "sudoku"}}


@pytest.mark.parametrize(
    ("data", "overrides", "message"),
    [
        ({"trainin": {}}, [], "trainin is not a setting of a recipe; did you mean training? allowed: task, model"),
        (
            {"sampler": {"blok_length": 3}},
            [],
            "sampler.blok_length is not a setting of sampler; did you mean block_length?",
        ),
        ({"task": {"kind": "sudoko"}}, [], "task.kind is 'sudoko'; allowed: sudoku, countdown"),
        ({"task": {}}, [], "task.kind is missing; allowed: sudoku, countdown"),
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
def test_an_invalid_recipe_says_what_to_do(data, overrides, message):
    with pytest.raises(RecipeError) as error:
        parse_recipe(SUDOKU | data, overrides)
    assert message in str(error.value)


def test_yaml_1_1_numbers_and_overrides_are_read_as_numbers():
    recipe = parse_recipe(SUDOKU | {"optimizer": {"learning_rate": "3e-6"}}, ["optimizer.weight_decay=1e-2"])
    assert (recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (3e-6, 0.01)


def test_a_dumped_recipe_loads_as_the_same_recipe(tmp_path):
    recipe = load_recipe("quickstart", ["model.lora.rank=4", "training.seed=7"])
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_a_child_changes_only_what_it_names(tmp_path):
    (tmp_path / "parent.yaml").write_text(
        "task: {kind: sudoku, blanks: [6, 8]}\nsampler: {gen_length: 16, steps: 16, block_length: 8}\n"
    )
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\nsampler: {steps: 8}\n")
    recipe = load_recipe(str(tmp_path / "child.yaml"))
    assert (recipe.sampler.gen_length, recipe.sampler.steps, recipe.task.blanks) == (16, 8, (6, 8))
    (tmp_path / "other.yaml").write_text("extends: parent.yaml\ntask: {kind: countdown}\n")
    assert load_recipe(str(tmp_path / "other.yaml")).task.kind == "countdown"


def test_defaults_are_table_8():
    recipe = parse_recipe(SUDOKU)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.beta1, recipe.optimizer.beta2) == (3e-6, 0.9, 0.99)
    assert (recipe.optimizer.weight_decay, recipe.training.num_iterations, recipe.training.num_generations) == (
        0.1,
        4,
        6,
    )
    assert (recipe.objective.epsilon, recipe.objective.beta, recipe.estimator.num_samples) == (0.2, 0.04, 3)
    assert (recipe.sampler.gen_length, recipe.sampler.temperature) == (256, 0.9)
    assert recipe.training.prompts_per_step * recipe.training.num_generations == 6 * 2  # batch x accumulation


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


def test_recipes_of_the_paper_name_their_row_and_its_result():
    paths = sorted((recipe_folder() / "paper").glob("*.yaml"))
    assert {int(path.name[5]) for path in paths} == {2, 3, 4, 5, 6, 7}
    for path in paths:
        first = path.read_text().splitlines()[0]
        expected = r"\d\d\.\d\d % after [\d,]+ s in the paper; A800 80GB \(8 assumed\); not run yet\."
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


def test_an_unknown_recipe_name_gets_the_nearest_one():
    with pytest.raises(RecipeError, match="did you mean quickstart.yaml"):
        load_recipe("quikstart.yaml")


@pytest.mark.parametrize(
    ("section", "setting", "message"),
    [
        ("sampler", "length", "is not a setting of sampler; did you mean gen_length? allowed: gen_length"),
        ("sampler", "block", "is not a setting of sampler; allowed: gen_length, steps, block_length"),
        ("training", "group", "allowed: steps, prompts_per_step, num_generations, num_iterations"),
        ("training", "problems", "allowed: steps, prompts_per_step"),
        ("estimator", "samples", "is not a setting of estimator elbo; did you mean num_samples? allowed: kind"),
        ("objective", "clip", "is not a setting of objective grpo; allowed: kind, epsilon, epsilon_high"),
    ],
)
def test_an_earlier_name_of_a_setting_is_refused_with_the_allowed_names(section, setting, message):
    with pytest.raises(RecipeError) as error:
        load_recipe("quickstart", [f"{section}.{setting}=1"])
    assert str(error.value).startswith(f"{section}.{setting} is not a setting of {section}")
    assert message in str(error.value)


@pytest.mark.parametrize("written", [{"stipule": "0.1.0"}, {"format": FORMAT - 1}])
def test_a_run_folder_of_an_earlier_format_is_refused(written, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe("quickstart")))
    (tmp_path / "environment.json").write_text(json.dumps({"format": FORMAT}))
    assert recipe_for_model(str(tmp_path)).task.kind == "sudoku"
    (tmp_path / "environment.json").write_text(json.dumps(written))
    with pytest.raises(CheckpointError, match="earlier version of stipule"):
        recipe_for_model(str(tmp_path))


def test_a_pretrained_model_with_earlier_setting_names_is_refused(tmp_path):
    (tmp_path / "pretrain.yaml").write_text("name: x\ntask: {kind: sudoku}\npretraining: {length: 16}\n")
    with pytest.raises(RecipeError, match="pretraining.length is not a setting.*did you mean gen_length.*pre-train"):
        recipe_for_model(str(tmp_path))
