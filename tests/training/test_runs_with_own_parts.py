"""Runs with parts of your own: equal to the built-in ones, recorded, resumed, and run from another folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stipule.cli import app
from stipule.config.recipe import dump_recipe, load_recipe, parse_recipe
from stipule.errors import RecipeError
from stipule.models.loading import save_policy
from stipule.report.page.build import write_page
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.toys import random_policy
from tests.training.processes import in_ranks
from tests.training.test_distributed import run, same_curve
from tests.training.test_runs import recipe, weights

EXAMPLES = Path(__file__).parents[2] / "examples"
CODE = """
from dataclasses import dataclass

from stipule.estimators.elbo import Elbo
from stipule.objectives.grpo import Grpo


@dataclass(frozen=True, kw_only=True)
class OwnElbo(Elbo):
    masks: str = "exact"
    importance_sampling: str = "fitted"


@dataclass(frozen=True, kw_only=True)
class OwnGrpo(Grpo):
    beta: float = 0.04
"""
OWN = ("estimator.kind=mine.py:OwnElbo", "objective.kind=mine.py:OwnGrpo")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    save_policy(random_policy(), folder, "x")
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def start(wanted, path="run"):
    return RunFolder.create(Path(path), dump_recipe(wanted))


def test_a_copy_of_the_elbo_and_of_grpo_trains_to_the_same_bits(base, folder):
    built_in, own = recipe(base, "training.steps=3"), recipe(base, "training.steps=3", *OWN)
    train(built_in, start(built_in, "built_in"))
    train(own, start(own, "own"))
    assert type(own.estimator).__name__ == "OwnElbo" and "mine.py:OwnElbo" in Path("own/recipe.yaml").read_text()
    assert weights(folder / "own") == weights(folder / "built_in")


def test_the_record_of_a_run_has_the_hash_of_each_file(base, folder):
    wanted = recipe(base, "training.steps=1", OWN[0])
    start(wanted)
    sha256 = hashlib.sha256((folder / "mine.py").read_bytes()).hexdigest()
    recorded = json.loads(Path("run/environment.json").read_text())
    assert recorded["custom_code"] == {"mine.py:OwnElbo": sha256}
    start(recipe(base), "without")
    assert "custom_code" not in json.loads(Path("without/environment.json").read_text())


def test_a_killed_run_with_own_parts_resumes_to_the_same_bits(base, folder):
    wanted = recipe(base, "training.steps=4", *OWN)
    train(wanted, start(wanted, "whole"))

    class Killed(Exception):
        pass

    def kill_at_two(event, data):
        if event == "saved" and data["step"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(wanted, start(wanted), kill_at_two)
    again = load_recipe("run/recipe.yaml")
    assert again == wanted
    train(again, RunFolder.reopen(Path("run"), dump_recipe(again)))
    assert weights(folder / "run") == weights(folder / "whole")


def test_a_run_is_not_continued_with_another_file(base, folder):
    wanted = recipe(base, *OWN)
    start(wanted)
    written = Path("run/recipe.yaml").read_text()
    (folder / "mine.py").write_text(CODE + "# changed\n")
    with pytest.raises(RecipeError, match="started with other code in mine.py:OwnElbo, mine.py:OwnGrpo: the file has"):
        RunFolder.reopen(Path("run"), dump_recipe(wanted))
    assert Path("run/recipe.yaml").read_text() == written
    (folder / "mine.py").write_text(CODE)
    RunFolder.reopen(Path("run"), dump_recipe(wanted))
    with pytest.raises(RecipeError, match="another recipe \\(estimator.num_samples: 3 then, 5 now\\)"):
        RunFolder.reopen(Path("run"), dump_recipe(recipe(base, *OWN, "estimator.num_samples=5")))


def test_a_changed_reward_function_is_refused_too(folder):
    (folder / "rewards.py").write_text("def one(completions, **columns):\n    return [1.0] * len(completions)\n")
    for name, prompt in (("train", "0204032001400402"), ("test", "0030400001002000")):
        Path(f"{name}.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n")
    task = {"kind": "custom", "train": "train.jsonl", "test": "test.jsonl", "reward": {"functions": ["rewards.py:one"]}}
    wanted = parse_recipe({"task": task})
    start(wanted)
    (folder / "rewards.py").write_text("def one(completions, **columns):\n    return [2.0] * len(completions)\n")
    with pytest.raises(RecipeError, match="other code in rewards.py:one"):
        RunFolder.reopen(Path("run"), dump_recipe(wanted))


RUNS = {
    "custom_estimator.py": ["quickstart", "estimator.kind=examples/custom_estimator.py:MeanOfOneStepAndElbo"],
    "custom_remasking.py": ["quickstart", "sampler.remasking=examples/custom_remasking.py:Margin"],
    "custom_pruning.py": [
        "quickstart",
        "pruning.temporal.kind=examples/custom_pruning.py:JointConfidence",
        "pruning.spatial.keep=examples/custom_pruning.py:LastTokens",
    ],
    "custom_task.py": ["quickstart", "task.kind=examples/custom_task.py:SortDigits"],
    "custom_reward.py": ["examples/custom_reward.yaml"],
}
SMALL = ["training.steps=2", "training.prompts_per_step=2", "training.num_generations=4"]


def test_every_example_has_a_run_is_short_and_says_how_to_run_it():
    files = sorted(EXAMPLES.glob("*.py"))
    assert [file.name for file in files] == sorted(RUNS)
    for file in files:
        text = file.read_text()
        assert len(text.splitlines()) < 40, file
        command = text.split('"""')[1].replace("\\\n", " ")
        assert all(argument in command.split() for argument in RUNS[file.name][:2]), file


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs_outside_the_repository(name, folder):
    shutil.copytree(EXAMPLES, folder / "examples")
    checked = CliRunner().invoke(app, ["check", *RUNS[name], *SMALL])
    assert checked.exit_code == 0 and f"examples/{name}" in checked.stdout, checked.output
    trained = ["train", *RUNS[name], *SMALL, "--out", "run"]
    if name == "custom_reward.py":  # one in a process of its own; the others would take as long to start as to run
        subprocess.run(
            [sys.executable, "-m", "stipule", *trained], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
        )
    else:
        assert CliRunner().invoke(app, trained).exit_code == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert any(f"examples/{name}" in key for key in json.loads(Path("run/environment.json").read_text())["custom_code"])
    write_page([Path("run")], Path("run.html"))
    assert "examples/custom" in Path("run.html").read_text()


@pytest.mark.slow
def test_two_processes_with_own_parts_give_the_losses_of_one(base, folder):
    shutil.copytree(EXAMPLES, folder / "examples")
    own = [argument for name in list(RUNS)[:3] for argument in RUNS[name][1:]]
    wanted = recipe(
        base, "training.steps=4", "pruning.spatial.source=ground_truth", "objective.kind=mine.py:OwnGrpo", *own
    )
    expected = in_ranks(1, run, wanted, folder / "one")[0]
    lines, other_rank = in_ranks(2, run, wanted, folder / "two")
    assert other_rank is None
    same_curve(lines, expected)
