"""The live display of a run, as text."""

import io

import pytest
from rich.console import Console

from stipule.report.denoising_view import denoising_steps
from stipule.report.live import LiveRun, sparkline

LINE = {
    "reward/mean": 0.5,
    "reward/accuracy": 0.25,
    "reward/frac_nonzero_std": 0.75,
    "time/rollout": 1.0,
    "time/update": 0.5,
    "time/total": 3.0,
    "nfe/rollout": 2048,
    "nfe/total": 12345,
}


def live_output(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with LiveRun(console, 20) as watch:
        for step in range(1, 21):
            watch("step", {**LINE, "step": step})
        watch("saved", {"step": 20})
    return out.getvalue()


def test_without_a_terminal_ten_lines_are_printed():
    lines = live_output(False).splitlines()
    assert len(lines) == 10
    assert lines[-1].split() == [
        "step",
        "20/20",
        "(100%)",
        "reward",
        "0.500",
        "accuracy",
        "25%",
        "3",
        "s",
        "12,345",
        "forward",
        "passes",
    ]


def test_a_terminal_shows_reward_fraction_of_groups_that_differ_and_forward_passes():
    text = live_output(True)
    for expected in ("20/20", "0.500", "25%", "75%", "rollout 2,048", "saved step 20"):
        assert expected in text


def test_a_sparkline_goes_from_empty_to_full():
    assert sparkline([0, 1, 2, 3]) == "▁▃▆█"
    assert sparkline([]) == ""
    assert sparkline([0.5, 0.5], top=1.0) == "▅▅"
    assert len(sparkline(list(range(500)), width=40)) == 40


def test_denoising_is_shown_forward_pass_by_forward_pass():
    lines = [str(line) for line in denoising_steps(["a", "b", "c"], [1, -1, 0], [0.5, 0.0, 0.9])]
    assert len(lines) >= 2
    assert "b" in lines[0] and "a" not in lines[0].split("b")[0].replace("call", "").replace("anchors", "")
    assert "a" in lines[-1] and "b" in lines[-1] and "c" in lines[-1]


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0]])
def test_zeros_are_drawn_as_the_lowest_bar(values):
    assert set(sparkline(values)) == {"▁"}


@pytest.mark.parametrize("terminal", [True, False])
def test_the_message_of_an_alarm_is_printed_unchanged(terminal):
    out = io.StringIO()
    with LiveRun(Console(file=out, force_terminal=terminal, width=100), 20) as watch:
        watch("step", {**LINE, "step": 1})
        watch("alarm", {"step": 1, "name": "ratio", "message": "a token jumped [50 times]; lower it"})
    assert "alarm at step 1: a token jumped [50 times]; lower it" in out.getvalue()


def test_a_failed_step_is_left_out_of_the_curve():
    watch = LiveRun(Console(file=io.StringIO()), 20, [{**LINE, "step": 1}, {"step": 2, "alarms": []}])
    assert [line["step"] for line in watch.lines] == [1]
