"""`stipule doctor --full`: every check passes on a CPU, and a check that finds something is a failed line."""

import pytest
import torch
from typer.testing import CliRunner

from stipule.cli import app
from stipule.commands import machine_checks
from stipule.commands.machine_checks import check_machine, environment
from stipule.errors import RecipeError


def test_every_check_of_a_cpu_passes_and_the_versions_are_printed():
    result = CliRunner().invoke(app, ["doctor", "--device", "cpu", "--full"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "25 of 25 passed or do not apply; failed: none" in result.output
    assert torch.__version__ in result.output
    assert "100% of the tokens as on the CPU" in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_before_a_model_loads():
    with pytest.raises(RecipeError, match="sees no GPU; check nvidia-smi"):
        environment("cuda")


def test_a_rounded_product_and_an_exception_are_failed_lines(monkeypatch):
    exact = torch.Tensor.__matmul__

    def rounded(left, right):  # float32 products in bfloat16, as with TF32 allowed but coarser
        is_float32 = left.dtype == torch.float32
        return exact(left.bfloat16(), right.bfloat16()).float() if is_float32 else exact(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    ok, measured, _ = machine_checks.product("cpu", torch.float32)
    assert not ok and "allowed 1e-05" in measured
    monkeypatch.setattr(machine_checks, "product", lambda device, dtype: torch.zeros(2) + torch.zeros(3))
    first = next(iter(check_machine("cpu")))
    assert first.ok is False and "RuntimeError: The size of tensor a" in first.measured
