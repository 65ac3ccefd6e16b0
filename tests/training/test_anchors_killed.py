"""A store of anchors that is killed while it is built continues to the same result."""

import os
import random
import signal
import subprocess
import sys
import time

# The command itself, but it saves after every batch instead of every half minute.
PROGRAM = (
    "import sys; from stipule.rollouts import pregenerate; pregenerate.SAVE_SECONDS = 0.0; "
    "from stipule.cli import main; sys.argv = ['stipule', *sys.argv[1:]]; main()"
)
ARGUMENTS = [
    *("anchors", "build", "quickstart", "task.train_problems=48", "training.rollout_batch_size=4"),
    "sampler.confidence_threshold=null",  # slow enough to be killed in the middle
]


def build(path):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *ARGUMENTS, "--out", str(path)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_store_survives_kills_while_it_is_being_built(tmp_path):
    assert build(tmp_path / "whole").wait(120) == 0
    path, moment = tmp_path / "killed", random.Random(0)
    for _ in range(2):
        process, before = build(path), path.stat().st_mtime_ns if path.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # until it has saved, then a random time
            if path.exists() and path.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(moment.uniform(0, 0.2))
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.read_bytes() != (tmp_path / "whole").read_bytes()
    assert build(path).wait(120) == 0
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
