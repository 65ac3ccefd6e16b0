"""One process at a time writes a folder or a file."""

import os
import signal
import time
from multiprocessing import get_context

import pytest
from typer.testing import CliRunner

from stipule.cli import app
from stipule.config.recipe import dump_recipe, load_recipe
from stipule.errors import RecipeError
from stipule.evaluation.evaluation_folder import EvaluationFolder
from stipule.file_lock import sole_writer
from stipule.reproduce.runs import run_all
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.training.loop import train
from stipule.training.run_folder import RunFolder
from tests.toys import COUNTDOWN


def hold(path, taken, with_child):
    with sole_writer(path):
        if with_child and os.fork() == 0:  # as a reward that starts processes: it outlives its parent
            time.sleep(30)
            os._exit(0)
        taken.set()
        time.sleep(30)


@pytest.fixture
def writer():
    """Starts another process that is the writer of a path, and kills it at the end."""
    context, processes = get_context("fork"), []

    def start(path, with_child=False):
        taken = context.Event()
        processes.append(context.Process(target=hold, args=(path, taken, with_child)))
        processes[-1].start()
        assert taken.wait(20)
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path, writer, kind):
    path = tmp_path if kind == "folder" else tmp_path / "anchors.safetensors"
    first = writer(path)
    message = rf"is being written by process {first.pid} on .*another path with --out"
    with pytest.raises(RecipeError, match=message), sole_writer(path):
        pass
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with sole_writer(path):
        pass
    assert not list(tmp_path.iterdir())  # nothing is left of the lock


def test_a_child_of_a_killed_writer_does_not_keep_the_lock(tmp_path, writer):
    first = writer(tmp_path, with_child=True)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with sole_writer(tmp_path):
        pass


def test_two_writers_in_one_process_are_refused_and_other_paths_are_free(tmp_path):
    (tmp_path / "a").mkdir()
    with (
        sole_writer(tmp_path / "a"),
        sole_writer(tmp_path / "b"),
        sole_writer(tmp_path),
        pytest.raises(RecipeError, match="written by this process"),
        sole_writer(tmp_path / "a"),
    ):
        pass
    with sole_writer(tmp_path / "a"):
        pass


def test_a_run_folder_is_refused_to_a_second_training_and_is_left_as_it_was(tmp_path, writer):
    recipe = load_recipe("quickstart", ["training.steps=1"])
    text = dump_recipe(recipe)
    folder = RunFolder.create(tmp_path / "run", text)
    writer(folder.path)
    before = {file.name: file.stat().st_mtime_ns for file in folder.path.iterdir()}
    for second in (
        lambda: train(recipe, folder),
        lambda: RunFolder.reopen(folder.path, text.replace("steps: 1\n", "steps: 2\n")),
        lambda: RunFolder.create(folder.path, text),
    ):
        with pytest.raises(RecipeError, match="is being written by process"):
            second()
    assert {file.name: file.stat().st_mtime_ns for file in folder.path.iterdir()} == before
    train(recipe, RunFolder.read_only(tmp_path / "other"))  # other ranks of a run take no lock


def test_an_evaluation_and_a_reproduction_have_one_writer(tmp_path, writer, policy):
    sampler = SemiAutoregressiveSampler(gen_length=8, steps=8, block_length=8)
    evaluation = EvaluationFolder(tmp_path / "evaluation", {"task": "countdown"})
    evaluation.path.mkdir()
    writer(evaluation.path)
    with pytest.raises(RecipeError, match="evaluation is being written"):
        evaluation.run(policy, COUNTDOWN, COUNTDOWN.problems("test")[:1], sampler, 1)
    (tmp_path / "out" / "sudoku").mkdir(parents=True)
    writer(tmp_path / "out" / "sudoku")
    with pytest.raises(RecipeError, match="sudoku is being written"):
        run_all(["elbo"], "sudoku", 1, tmp_path / "out", 1, lambda done, total: None)


@pytest.mark.parametrize(
    "command", [["anchors", "build", "quickstart"], ["pretrain", "tiny/sudoku_base"], ["variance", "quickstart"]]
)
def test_a_command_is_refused_while_another_process_makes_the_same_output(tmp_path, writer, command):
    writer(tmp_path / "out")
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, RecipeError) and "is being written by process" in str(result.exception)
