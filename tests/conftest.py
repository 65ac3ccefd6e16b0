"""Checks shape annotations in every test; models are tiny and offline."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook looks it up by name)

# All packages with tensors except models/families: transformers' configuration classes build their own constructors.
CHECKED = (
    "types",
    "models.policy",
    "models.masked_policy",
    "models.loading",
    "rollouts",
    "estimators",
    "objectives",
    "training",
    "evaluation",
)
install_import_hook([f"stipule.{package}" for package in CHECKED], "tests.typecheck.checked")

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

torch.set_num_threads(1)

# `make test` tries the same examples in every run; `make fuzz` tries new ones and prints how to repeat a failure. No
# test has settings of its own. Neither profile has a time limit, which a busy machine would exceed.
TIMELESS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("same", TIMELESS, derandomize=True, database=None)
settings.register_profile("fuzz", TIMELESS, max_examples=2000)
settings.load_profile("same")


@pytest.hookimpl(trylast=True)  # after --hypothesis-profile is read
def pytest_configure(config):
    """Hypothesis also draws numbers that occur in loaded modules, and these depend on the tests that ran before."""
    if settings.default.derandomize:
        providers._get_local_constants = lambda: providers._local_constants  # which stays empty


@pytest.fixture(autouse=True)
def torch_seed():
    """Tests that use torch's global generator get the same numbers in any order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def policy():
    """A random LLaDA of 2 layers whose logits depend strongly on their context."""
    from tests.toys import random_policy

    return random_policy()


@pytest.fixture(autouse=True)
def wide_console(monkeypatch):
    """Commands called in this process print 240 columns wide, so that no table or sentence is wrapped."""
    from stipule.cli.app import console

    monkeypatch.setattr(console, "_width", 240)
