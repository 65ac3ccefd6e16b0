"""Shape annotations are checked in every test; models are tiny and offline."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook finds it by attribute)

# All rooms but models/families.py: transformers' configuration classes build their own constructors.
ROOMS = (
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
install_import_hook([f"stipule.{room}" for room in ROOMS], "tests.typecheck.checked")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def policy():
    """A random LLaDA of 2 layers whose logits depend strongly on their context."""
    from tests.toys import random_policy

    return random_policy()


@pytest.fixture(autouse=True)
def wide_console(monkeypatch):
    """Commands that are called in this process print to a width at which no table or sentence is broken."""
    from stipule.cli.app import console

    monkeypatch.setattr(console, "_width", 240)
