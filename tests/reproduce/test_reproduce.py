"""The command on a testbed of one step: runs, tables, and a second call that runs nothing again."""

import json
import os
import signal
import subprocess
import sys
import time

from stipule.config.recipe import find_recipe, read_yaml
from stipule.file_lock import sole_writer


def reproduce(cwd, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "stipule", "reproduce", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def test_a_table_is_run_checked_written_and_not_run_again(tmp_path):
    testbed = read_yaml(find_recipe("reproduce/sudoku"))
    testbed["task"] |= {"train_problems": 8, "test_problems": 8}
    testbed["training"] |= {"steps": 1, "prompts_per_step": 2, "num_generations": 2, "save_every": 1}
    (tmp_path / "small.yaml").write_text(json.dumps(testbed))
    arguments = ["table7", "--world", "small.yaml", "--seeds", "1", "--jobs", "1", "--out", "out"]
    process = reproduce(tmp_path, *arguments)
    assert process.returncode == 0, process.stderr
    table = json.loads((tmp_path / "out" / "small" / "table7.json").read_text())
    assert [row["row"] for row in table["rows"]] == ["spatial_random", "spatial"]
    assert table["problems"] == 8 and table["seeds"] == 1
    assert table["rows"][0]["calls"] == table["rows"][1]["calls"] > 0
    page = (tmp_path / "out" / "small" / "table7.md").read_text()
    assert "35.20 %" in page and "98,234" in page and "not distinguishable" in page
    environment = json.loads((tmp_path / "out" / "small" / "spatial-0" / "environment.json").read_text())
    assert table["made"]["processor"] == [environment["processor"]] and table["made"]["recipe"] in page
    assert environment["torch"] in page and "no interval from one seed" in page
    published = reproduce(tmp_path, *arguments, "--published-code")
    assert published.returncode == 0, published.stderr
    both = json.loads((tmp_path / "out" / "small" / "table7_published_code.json").read_text())
    assert [row["published"]["row"] for row in both["rows"]] == ["spatial_random_published", "spatial_published"]
    assert (
        both["rows"][0]["accuracy"] == table["rows"][0]["accuracy"] and both["verdicts"][0]["published"]["seeds"] == 1
    )
    assert "authors' code: accuracy" in (tmp_path / "out" / "small" / "table7_published_code.md").read_text()
    before = (tmp_path / "out" / "small" / "spatial-0" / "metrics.jsonl").stat().st_mtime_ns
    assert reproduce(tmp_path, *arguments).returncode == 0
    assert (tmp_path / "out" / "small" / "spatial-0" / "metrics.jsonl").stat().st_mtime_ns == before
    testbed["optimizer"]["learning_rate"] = 1e-3
    (tmp_path / "small.yaml").write_text(json.dumps(testbed))
    other = reproduce(tmp_path, *arguments)
    assert other.returncode == 2 and "has a run of another recipe" in other.stderr


def test_the_frontier_of_some_rows_is_drawn_with_their_learning_curves(tmp_path):
    testbed = read_yaml(find_recipe("reproduce/sudoku_low_confidence"))
    testbed["task"] |= {"train_problems": 4, "test_problems": 8}
    testbed["training"] |= {"steps": 2, "prompts_per_step": 2, "num_generations": 2, "save_every": 2}
    testbed["training"] |= {"evaluate_every": 1, "evaluate_problems": 4}
    (tmp_path / "small.yaml").write_text(json.dumps(testbed))
    arguments = ["frontier", "--world", "small.yaml", "--seeds", "1", "--jobs", "2", "--out", "out"]
    process = reproduce(tmp_path, *arguments, "--rows", "parallel_confident,elbo,spatial")
    assert process.returncode == 0, process.stderr
    table = json.loads((tmp_path / "out" / "small" / "frontier.json").read_text())
    assert [row["row"] for row in table["rows"]] == ["elbo", "spatial", "parallel_confident"]
    for row in table["rows"]:
        (curve,) = table["curves"][row["row"]]
        assert len(curve) == 2 and curve[-1][0] == row["calls"] + row["anchor_calls"]
    assert table["rows"][1]["anchor_calls"] == 4 * 16
    assert "--rows parallel_confident,elbo,spatial" in (tmp_path / "out" / "small" / "frontier.md").read_text()
    assert (tmp_path / "out" / "small" / "frontier.png").read_bytes()[:4] == b"\x89PNG"


def test_an_unknown_table_is_an_error_before_anything_runs(tmp_path):
    process = reproduce(tmp_path, "table9")
    assert process.returncode == 2 and "allowed: table2" in process.stderr
    assert not list(tmp_path.iterdir())


def test_for_gpus_the_commands_are_printed(tmp_path):
    process = reproduce(tmp_path, "table5", "--scale", "llada-8b")
    assert process.stdout.count("stipule train recipes/paper/table5_") == 4


def test_sigterm_ends_the_runs_too_and_the_same_command_continues(tmp_path):
    testbed = read_yaml(find_recipe("reproduce/sudoku"))
    testbed["task"] |= {"train_problems": 8, "test_problems": 8}
    testbed["training"] |= {"steps": 400, "prompts_per_step": 2, "num_generations": 2, "save_every": 400}
    (tmp_path / "small.yaml").write_text(json.dumps(testbed))
    arguments = ["table7", "--world", "small.yaml", "--seeds", "1", "--jobs", "1", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "stipule", "reproduce", *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    run = tmp_path / "out" / "small" / "spatial_random-0"
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped; finished runs are kept, and the others up to their last checkpoint; the same command" in output
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert 0 < int(checkpoint.name[5:]) < 400
    assert [path.name for path in run.parent.iterdir()] == [run.name]  # the next run was not started
    with sole_writer(run):  # the process of the run has ended
        pass
