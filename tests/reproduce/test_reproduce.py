"""The command on a world of two steps: runs, tables, and going on without doing anything twice."""

import json
import os
import subprocess
import sys

from stipule.config.recipe import find_recipe, read_yaml


def reproduce(cwd, *words):
    done = subprocess.run(
        [sys.executable, "-m", "stipule", "reproduce", *words],
        cwd=cwd, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    return done


def test_a_table_is_run_judged_written_and_not_run_again(tmp_path):
    world = read_yaml(find_recipe("reproduce/sudoku"))
    world["task"] |= {"train_problems": 8, "test_problems": 8}
    world["training"] |= {"steps": 1, "problems": 2, "group": 2, "save_every": 1}
    (tmp_path / "small.yaml").write_text(json.dumps(world))
    words = ["table7", "--world", "small.yaml", "--seeds", "1", "--jobs", "1", "--out", "out"]
    done = reproduce(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "small" / "table7.json").read_text())
    assert [row["row"] for row in found["rows"]] == ["spatial_random", "spatial"]
    assert found["problems"] == 8 and found["seeds"] == 1
    assert found["rows"][0]["calls"] == found["rows"][1]["calls"] > 0
    page = (tmp_path / "out" / "small" / "table7.md").read_text()
    assert "35.20 %" in page and "98,234" in page and "not distinguishable" in page
    environment = json.loads((tmp_path / "out" / "small" / "spatial-0" / "environment.json").read_text())
    assert found["made"]["processor"] == [environment["processor"]] and found["made"]["recipe"] in page
    assert environment["torch"] in page and "no interval from one seed" in page
    before = (tmp_path / "out" / "small" / "spatial-0" / "metrics.jsonl").stat().st_mtime_ns
    assert reproduce(tmp_path, *words).returncode == 0
    assert (tmp_path / "out" / "small" / "spatial-0" / "metrics.jsonl").stat().st_mtime_ns == before
    world["optimizer"]["learning_rate"] = 1e-3
    (tmp_path / "small.yaml").write_text(json.dumps(world))
    other = reproduce(tmp_path, *words)
    assert other.returncode == 2 and "holds a run of another recipe" in other.stderr


def test_a_table_that_there_is_not_is_an_error_before_anything_runs(tmp_path):
    done = reproduce(tmp_path, "table9")
    assert done.returncode == 2 and "there are table2" in done.stderr
    assert not list(tmp_path.iterdir())


def test_on_gpus_the_commands_are_printed(tmp_path):
    done = reproduce(tmp_path, "table5", "--scale", "llada-8b")
    assert done.stdout.count("stipule train recipes/paper/table5_") == 4
