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

torch.set_num_threads(1)


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
