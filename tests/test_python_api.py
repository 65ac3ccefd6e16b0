"""`import stipule`: light, complete, and a run from Python is the run of the command line."""

import ast
import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import stipule
from stipule.cli.python_api import EXAMPLE
from stipule.errors import RecipeError

SMALL = [
    *("training.steps=2", "training.prompts_per_step=2", "training.num_generations=4", "training.rollouts_every=2"),
    *("pruning.spatial.ratio=0", "task.train_problems=8", "task.test_problems=8"),
]


def test_importing_it_loads_no_library_and_every_name_exists():
    code = "import stipule, sys; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'rich', 'pydantic')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    for name in stipule.__all__:
        value = getattr(stipule, name)
        assert value.__name__ == name and value.__doc__ and name in dir(stipule)


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(stipule.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"stipule.{module}" for name, module in stipule._MODULES.items()}
    assert sorted(seen) == sorted(stipule.__all__)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_names():
    with pytest.raises(AttributeError, match=r"no attribute 'trian'; it has .*train"):
        stipule.trian  # noqa: B018


def test_one_step_by_hand_has_gradients(capsys):
    names = {}
    exec(EXAMPLE, names)
    assert "forward passes, mean reward 0." in capsys.readouterr().out
    gradients = [p.grad for p in names["policy"].model.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert any(bool((g != 0).any()) for g in gradients)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return stipule.train("quickstart", tmp_path_factory.mktemp("python") / "run", SMALL, show_progress=False)


def weights(folder):
    files = sorted((folder / "checkpoints").glob("step-*/model/*.safetensors"))
    return [(file.parent.parent.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


def without_seconds(metrics):
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in metrics]


def test_a_run_from_python_equals_that_of_the_command_line(run, tmp_path):
    command = [sys.executable, "-m", "stipule", "train", "quickstart", *SMALL, "--out", str(tmp_path / "run")]
    subprocess.run(command, check=True, capture_output=True)
    other = stipule.Run(tmp_path / "run")
    assert weights(run.path) == weights(other.path) != []
    assert without_seconds(run.metrics) == without_seconds(other.metrics)
    assert (run.path / "recipe.yaml").read_text() == (other.path / "recipe.yaml").read_text()


def test_a_run_reads_its_folder(run, tmp_path):
    assert [line["step"] for line in run.metrics] == [1, 2]
    assert run.frame().loc[2, "nfe/total"] == run.metrics[1]["nfe/total"]
    assert len(run.rollouts()) == len(run.rollouts(2)) == 8
    assert run.checkpoint.name == "step-000002"
    assert run.recipe.training.steps == 2 and run.recipe == stipule.load_recipe("quickstart", SMALL)
    assert repr(run).endswith("run', 2 steps)")
    problems = run.recipe.task.problems("test")
    assert stipule.evaluate(run.load_policy(), run.recipe.task, problems, run.recipe.sampler).total == 8
    assert "<html" in run.write_report(tmp_path / "page.html").read_text()[:100]


def test_a_run_goes_on_to_the_same_numbers(run, tmp_path):
    recipe = replace(run.recipe, training=replace(run.recipe.training, steps=1))
    first = stipule.train(recipe, tmp_path / "run", show_progress=False)
    assert len(first.metrics) == 1
    both = stipule.train(run.recipe, tmp_path / "run", resume=True, show_progress=False)
    assert weights(both.path)[-1] == weights(run.path)[-1]
    assert without_seconds(both.metrics) == without_seconds(run.metrics)


def test_bad_input_is_refused_before_a_model_is_loaded(run, tmp_path):
    with pytest.raises(RecipeError, match="already holds a run"):
        stipule.train(run.recipe, run.path)
    with pytest.raises(RecipeError, match=r"overrides \(training.steps=3\) change a recipe"):
        stipule.train(run.recipe, tmp_path / "new", ["training.steps=3"])
    with pytest.raises(RecipeError, match="is no run folder"):
        stipule.Run(tmp_path)
    with pytest.raises(RecipeError, match="of steps 2, not of step 1"):
        run.rollouts(1)


def test_settings_without_effect_are_warned_of(run):
    sampled = ["sampler.temperature=0", "pruning.temporal.kind=constant", "pruning.temporal.tail=sample"]
    with pytest.warns(UserWarning, match="tail is sample with sampler.temperature 0"), pytest.raises(RecipeError):
        stipule.train("quickstart", run.path, sampled)
