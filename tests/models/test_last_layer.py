"""The last layer at some positions only: the same hidden states and gradients with fewer operations."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stipule.models.last_layer import unique_indices
from stipule.models.loading import LoRA, ModelConfig, load_policy
from stipule.plan.shape import shape_of
from tests.models import published

NAMES = [name for name in published.NAMES if name not in ("bert", "roberta", "modernbert")]
INPUT_IDS = torch.randint(4, 20, (3, 9), generator=torch.Generator().manual_seed(0))
ATTENTION_MASK = torch.arange(9)[None] >= torch.tensor([[0], [3], [9]])  # the last row has one real token
ATTENTION_MASK[2, 8] = True
POSITION_MASK = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) < 0.3
POSITION_MASK[0, :2] = True  # with shifted logits the first position predicts both
POSITION_MASK[2, 8] = True
POSITION_MASK &= ATTENTION_MASK


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for name in NAMES:
        published.write(name, root / name)
    return root


def hidden_states_and_gradients(policy, full_layer, monkeypatch):
    if full_layer:
        monkeypatch.setattr("stipule.models.last_layer.compute_only_at", lambda *_: nullcontext())
    policy.model.zero_grad()
    hidden_states = policy.hidden_states(INPUT_IDS, ATTENTION_MASK, POSITION_MASK, int(POSITION_MASK.sum()))
    weights = torch.randn(hidden_states.shape, generator=torch.Generator().manual_seed(2))
    (hidden_states * weights).sum().backward()
    monkeypatch.undo()
    return hidden_states.detach(), {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lora", [None, LoRA(rank=4, alpha=4)], ids=["full", "lora"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True], ids=["stored", "checkpointed"])
def test_hidden_states_and_gradients_are_those_of_the_full_layer(
    checkpoints, name, lora, gradient_checkpointing, monkeypatch
):
    settings = {"lora": lora, "gradient_checkpointing": gradient_checkpointing, **published.settings(name)}
    policy = load_policy(ModelConfig(path=str(checkpoints / name), **settings), seed=1)
    if gradient_checkpointing:
        policy.model.train()  # as in `policy.update_mode`
    expected, expected_gradients = hidden_states_and_gradients(policy, True, monkeypatch)
    hidden_states, gradients = hidden_states_and_gradients(policy, False, monkeypatch)
    assert torch.allclose(hidden_states, expected, atol=1e-5)
    assert set(gradients) == set(expected_gradients)
    for name, gradient in expected_gradients.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-5 * float(gradient.abs().max()) + 1e-9), name


def test_operations_decrease_by_those_of_the_other_positions(checkpoints, monkeypatch):
    policy = load_policy(ModelConfig(path=str(checkpoints / "llada")))
    saved = shape_of(policy.published_config).position_wise

    def operations(position_mask):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            policy.hidden_states(INPUT_IDS, None, position_mask, int(position_mask.sum()))
        return counter.get_total_flops()

    every = torch.ones_like(POSITION_MASK)
    assert operations(every) - operations(POSITION_MASK) == 2 * saved * int((~POSITION_MASK).sum())


def test_no_hook_remains_on_the_network(checkpoints):
    policy = load_policy(ModelConfig(path=str(checkpoints / "llada")))
    policy.hidden_states(INPUT_IDS, None, POSITION_MASK)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in policy.model.modules())


def test_indices_are_made_unique_and_padded():
    assert unique_indices(torch.tensor([4, 0, 4, 2]), 6).tolist() == [0, 2, 4, 6]
