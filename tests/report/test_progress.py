"""Without a terminal a command prints how far it is, at least every 30 seconds."""

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from stipule.report import progress
from stipule.report.live import LiveRun
from stipule.report.progress import ProgressRate, bar, duration, parts
from tests.report.test_live import LINE

COMMANDS = Path(progress.__file__).parents[1]


@pytest.fixture
def out(monkeypatch):
    """The output of a console that is no terminal, with a line every 20 ms."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    return io.StringIO()


def test_a_bar_prints_lines_with_the_share_done_and_the_time_left(out):
    with bar(Console(file=out, width=100), "evaluating") as update:
        time.sleep(0.05)  # before the amount of work is known
        update(1, 10)  # done before, by an interrupted command
        time.sleep(0.05)
        update(2, 10)
        time.sleep(0.1)
        update(10, 10)
    lines = out.getvalue().splitlines()
    assert lines[0] == "evaluating: starting"
    assert "evaluating: 1 of 10 (10%), 0 s, time left not known yet" in lines
    assert any(re.fullmatch(r"evaluating: 2 of 10 \(20%\), 0 s, about \d+ s left", line) for line in lines)
    assert lines[-1] == "evaluating: 10 of 10 (100%), 0 s"
    assert len(lines) >= 5  # also while nothing is reported


def test_parts_of_a_command_are_named(out):
    with parts(Console(file=out, width=100), "measuring", total=2) as start:
        start("rollouts")
        time.sleep(0.05)
        start("masks")
        time.sleep(0.05)
    lines = out.getvalue().splitlines()
    assert "measuring: rollouts, part 0 of 2 (0%), 0 s, time left not known yet" in lines
    assert "measuring: masks, part 1 of 2 (50%), 0 s, about 0 s left" in lines


def test_a_training_run_prints_lines_while_it_loads_makes_anchors_and_takes_a_long_step(out):
    with LiveRun(Console(file=out, width=100), 100) as watch:
        time.sleep(0.05)
        watch("anchors", {"done": 0, "total": 32})
        watch("anchors", {"done": 8, "total": 32})
        time.sleep(0.05)
        watch("step", {**LINE, "step": 1})
        time.sleep(0.05)
        watch("step", {**LINE, "step": 2})
        time.sleep(0.05)
    text = out.getvalue()
    for line in (
        "training: loading the model",
        "training: pre-generating anchors: 8 of 32 (25%), 0 s, about 0 s left",
        "step     1/100 (1%, about 4 min 57 s left)  reward 0.500",  # 99 steps of 3 s, by its own clock
        "step     2/100 (2%, about ",
    ):
        assert line in text


def test_short_commands_print_no_more_than_before_and_a_terminal_gets_a_bar(monkeypatch):
    out = io.StringIO()
    with parts(Console(file=out), "planning") as start:
        start("reading prompts")
    assert out.getvalue() == ""
    with bar(Console(file=out, force_terminal=True, width=100), "evaluating") as update:
        update(10, 10)
    assert "━" in out.getvalue()


@pytest.mark.parametrize(
    ("done", "first", "text"), [(5, 4, "about 1 h 40 min left"), (4, 4, "time left not known yet")]
)
def test_the_time_left_is_that_of_what_this_process_has_done(monkeypatch, done, first, text):
    pace = ProgressRate(first, 105)
    pace.done = done
    monkeypatch.setattr(time, "monotonic", lambda: pace.started + 60)
    assert str(pace).endswith(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (190, "3 min 10 s"), (7500, "2 h 5 min")]
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_every_command_uses_this_mechanism():
    for file in [*COMMANDS.glob("cli/*.py"), *COMMANDS.glob("commands/*.py")]:
        assert not re.search(r"console\.status|rich\.(progress|live|status)", file.read_text()), file


def test_a_log_file_has_lines_while_the_command_runs(tmp_path):
    program = (
        "import sys; from stipule.report import progress; progress.LINE_SECONDS = 0.05; "
        "from stipule.cli import main; sys.argv = ['stipule', *sys.argv[1:]]; main()"
    )
    log = tmp_path / "log"
    with log.open("w") as file:
        arguments = ["pretrain", "tiny/sudoku_base", "pretraining.steps=100000", "--out", str(tmp_path / "base")]
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=file)
    deadline = time.monotonic() + 60
    while not re.search(r"pre-training: \d+ of 100,000 \(0%\), \d+ s, about .* left\n", log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 128 + 15
    assert log.read_text().splitlines()[-1] == "stopped; pre-training keeps nothing before its end; start it again"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
