"""Signals: the first one ends a run after its step, with a checkpoint."""

import os
import signal

import pytest

from stipule.training import interrupt
from stipule.training.interrupt import Terminated, sigterm_raises, stop_after_step


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_recorded_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_after_step() as stop_signal:
        assert stop_signal() == 0
        send(number)
        assert stop_signal() == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM),  # Slurm's, and the one that torchrun passes on
        (signal.SIGINT, signal.SIGINT),  # the terminal's, and the one that torchrun passes on
        (signal.SIGINT, signal.SIGTERM),
    ],
)
def test_the_same_request_sent_twice_does_not_stop_at_once(numbers):
    with stop_after_step() as stop_signal:
        for number in numbers:
            send(number)
        assert stop_signal() == numbers[0]


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_never_does(monkeypatch):
    monkeypatch.setattr(interrupt, "SAME_REQUEST", 0.0)
    with stop_after_step():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_outside_of_a_run_sigterm_raises():
    with sigterm_raises(), pytest.raises(Terminated):
        send(signal.SIGTERM)
    with sigterm_raises(), stop_after_step() as stop_signal:  # the run's rule is the inner one
        send(signal.SIGTERM)
        assert stop_signal() == signal.SIGTERM
