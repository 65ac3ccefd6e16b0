"""The commit in a record is that of the code that ran."""

import subprocess

from stipule.training.provenance import commit, processor
from stipule.training.run_folder import environment


def git(path, *arguments):
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *name, "-C", str(path), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_tracked_code_with_a_mark_for_local_changes(tmp_path):
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


def test_a_run_records_its_processor_and_commit():
    assert processor() and {"processor", "commit", "cores", "torch"} <= environment().keys()
