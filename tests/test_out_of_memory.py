"""Where memory runs out, the user reads one sentence with the settings to change."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from stipule import cli
from stipule.errors import CheckpointError, out_of_memory_message
from stipule.models.families.llada import LladaForMaskedLM
from stipule.models.loading import ModelConfig, load_policy
from tests.models import published

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)


@pytest.mark.parametrize(
    ("error", "amount"),
    [(GPU, "2.50 GiB"), (CPU, "9 bytes"), (MemoryError(), None), (OSError(errno.ENOMEM, "no memory"), None)],
)
def test_the_message_names_the_settings_that_plan_changes(error: BaseException, amount: str | None) -> None:
    message = out_of_memory_message(error)
    assert message is not None and "\n" not in message
    assert (f"the last request was for {amount}" in message) == (amount is not None)
    for setting in ("micro_batch_size", "rollout_batch_size", "gradient_checkpointing", "lora", "dtype", "quantize"):
        assert setting in message


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), OSError(errno.ENOENT, "no file"), ValueError("x")])
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert out_of_memory_message(error) is None


@pytest.mark.parametrize("error", [GPU, CPU])
def test_out_of_memory_while_loading_is_not_called_damaged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    published.write("llada", tmp_path / "m")

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(LladaForMaskedLM, "from_pretrained", fail)
    with pytest.raises(type(error)) as caught:
        load_policy(ModelConfig(path=str(tmp_path / "m")))
    assert caught.value is error
    monkeypatch.setattr(LladaForMaskedLM, "from_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(CheckpointError, match="cannot be read: gone"):
        load_policy(ModelConfig(path=str(tmp_path / "m")))


def test_the_command_line_prints_one_sentence_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        raise GPU

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory (the last request was for 2.50 GiB)")
