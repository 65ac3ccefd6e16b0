"""Shape annotations are checked in every test; models are tiny and offline."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

install_import_hook("stipule", "beartype.beartype")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def policy():
    """A random LLaDA of 2 layers whose logits depend strongly on their context."""
    from tests.toys import random_policy

    return random_policy()
