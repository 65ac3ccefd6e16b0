"""A store of anchors that is killed while it is being made goes on, and ends up the same."""

import os
import random
import signal
import subprocess
import sys
import time

# The command itself, but writing after every portion instead of every half minute.
PROGRAM = (
    "import sys; from stipule.rollouts import pregenerate; pregenerate.SAVE_SECONDS = 0.0; "
    "from stipule.cli import main; sys.argv = ['stipule', *sys.argv[1:]]; main()"
)
WORDS = ["anchors", "build", "quickstart", "task.train_problems=48", "training.rollout_batch_size=4"]


def build(place):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *WORDS, "--out", str(place)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_store_survives_kills_while_it_is_being_built(tmp_path):
    assert build(tmp_path / "whole").wait(120) == 0
    place, chance = tmp_path / "killed", random.Random(0)
    for _ in range(2):
        process, before = build(place), place.stat().st_mtime_ns if place.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # until it has written, then a moment more
            if place.exists() and place.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.2))
        assert process.poll() is None, "it was done before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert place.read_bytes() != (tmp_path / "whole").read_bytes()
    assert build(place).wait(120) == 0
    assert place.read_bytes() == (tmp_path / "whole").read_bytes()
