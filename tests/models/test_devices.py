"""Every command computes on the same device: a GPU if there is one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import stipule
from stipule.models.loading import best_device
from stipule.rng import generator_devices

SOURCE = Path(stipule.__file__).parent


@pytest.mark.parametrize("folder", ["cli", "commands", "evaluation", "training", "plan"])
def test_every_command_says_on_which_device_its_model_is_loaded(folder: str) -> None:
    """The default of load_policy is the CPU, so a call without a device would mix devices on a machine with a GPU."""
    calls = [
        (file.name, {keyword.arg for keyword in node.keywords})
        for file in (SOURCE / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "load_policy"
    ]
    assert all("device" in keywords for _, keywords in calls), calls
    assert calls or folder == "plan"


@pytest.mark.parametrize(
    ("has_gpu", "use_cpu", "device"),
    [(True, None, "cuda"), (True, "true", "cpu"), (True, "false", "cuda"), (False, None, "cpu")],
)
def test_commands_and_training_choose_the_same_device(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, use_cpu: str | None, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    if use_cpu is not None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", use_cpu)
    assert best_device() == device


def test_only_the_generators_of_the_device_in_use_are_saved() -> None:
    assert generator_devices("cuda:3") == [torch.device("cuda:3")]
    assert generator_devices("cpu") == generator_devices("meta") == []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "fork_rng":
                assert node.args, f"{file}: fork_rng without devices saves those of all GPUs"
