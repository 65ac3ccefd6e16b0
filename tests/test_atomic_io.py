"""A full disk or a folder that cannot be written: one sentence, and what was there stays."""

import os
import resource
import shutil
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stipule.config.recipe import dump_recipe, load_recipe
from stipule.errors import StipuleError
from stipule.evaluation.evaluation_folder import EvaluationFolder
from stipule.file_lock import sole_writer
from stipule.report.page.build import write_page
from stipule.rollouts.anchors import AnchorStore
from stipule.training.checkpoint import TrainState, save_checkpoint
from stipule.training.run_folder import RunFolder
from tests.toys import random_policy

NOBODY = 65534


@contextmanager
def full_disk():
    """No file may grow beyond 100 bytes; the system reports it as it reports a full disk, by an OSError."""
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def read_only(folder):
    """Nothing in a folder may be written; root may write everywhere, and becomes another user."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path in folders:
            path.chmod(0o755)


@pytest.fixture
def run():
    """A run folder with one line of metrics, where every user can read."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    folder = RunFolder.create(parent / "run", dump_recipe(load_recipe("quickstart")))
    folder.append_metrics({"step": 1, "reward/mean": 0.5})
    yield folder
    shutil.rmtree(parent)


def evaluate(path, policy):
    task = load_recipe("quickstart").task
    EvaluationFolder(path, {"request": "x" * 200}).run(policy, task, [], load_recipe("quickstart").sampler, 1)


WRITES = {
    "checkpoint": lambda folder, policy: save_checkpoint(
        folder.checkpoints, TrainState(step=1), policy, torch.optim.AdamW(policy.model.parameters()), None, "x", 2
    ),
    "metrics": lambda folder, policy: folder.append_metrics({"step": 2, "message": "x" * 200}),
    "metrics of a resumed run": lambda folder, policy: folder.truncate_after(1),
    "rollouts": lambda folder, policy: folder.write_rollouts(1, [{"response": "x" * 200}]),
    "anchors": lambda folder, policy: AnchorStore(12, policy.vocab_size).save(folder.path / "a.safetensors", policy),
    "report": lambda folder, policy: write_page([folder.path], folder.path / "report.html"),
    "recipe": lambda folder, policy: RunFolder.create(folder.path / "new", dump_recipe(load_recipe("quickstart"))),
    "evaluation": lambda folder, policy: evaluate(folder.path / "evaluation", policy),
    "lock": lambda folder, policy: sole_writer(folder.path).__enter__(),
}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", [kind for kind in WRITES if kind not in ("metrics of a resumed run", "lock")])
def test_a_full_disk_is_one_sentence_and_what_was_written_stays(run, policy, kind):
    before = content(run.path)
    with full_disk(), pytest.raises(StipuleError, match=r"could not write .*free some space"):
        WRITES[kind](run, policy)
    after = content(run.path)
    assert {name: after[name][: len(bytes_)] for name, bytes_ in before.items()} == before
    assert not [name for name in after if name.endswith(".writing")]
    run.append_metrics({"step": 2})
    if kind != "metrics":  # an incomplete line ends the file, as after a kill; resuming removes it
        assert [line["step"] for line in run.read_metrics()] == [1, 2]


@pytest.mark.parametrize("kind", WRITES)
def test_a_folder_that_cannot_be_written_is_one_sentence_and_nothing_changes(run, kind):
    policy, before = random_policy(), content(run.path)
    with read_only(run.path), pytest.raises(StipuleError, match=r"could not write .*(Permission|Read-only)"):
        WRITES[kind](run, policy)
    assert content(run.path) == before
