"""The commit beside a number is the one whose code made it."""

import subprocess

from stipule.training.run_folder import environment
from stipule.training.provenance import commit, processor


def git(place, *words):
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *name, "-C", str(place), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_tracked_code_and_marked_where_the_code_was_changed(tmp_path):
    git(tmp_path, "init", "--quiet")
    code, installed = tmp_path / "code", tmp_path / "environment"
    code.mkdir(), installed.mkdir()
    (code / "a.py").write_text("1\n")
    (installed / "b.py").write_text("1\n")
    assert commit(code) is None
    git(tmp_path, "add", "code")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(code) == head[:12]
    assert commit(installed) is None
    (code / "a.py").write_text("2\n")
    assert commit(code) == f"{head[:12]}+"


def test_a_run_says_where_it_was_made():
    assert processor() and {"processor", "commit", "cores", "torch"} <= environment().keys()
