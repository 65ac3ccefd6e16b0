"""The last layer where it is asked for alone: the states and gradients of the whole, for counted less."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stipule.models.last_layer import unique_indices
from stipule.models.loading import LoRA, ModelConfig, load_policy
from stipule.plan.shape import shape_of
from tests.models import published

BY_PLACE = [name for name in published.NAMES if name not in ("bert", "roberta", "modernbert")]
TOKENS = torch.randint(4, 20, (3, 9), generator=torch.Generator().manual_seed(0))
ATTEND = torch.arange(9)[None] >= torch.tensor([[0], [3], [9]])  # the last row is padding alone but for one
ATTEND[2, 8] = True
AT = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) < 0.3
AT[0, :2] = True  # under a shift both are predicted by the first
AT[2, 8] = True
AT &= ATTEND


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    for name in BY_PLACE:
        published.write(name, root / name)
    return root


def states_and_gradients(policy, whole, monkeypatch):
    if whole:
        monkeypatch.setattr("stipule.models.policy.only_at", lambda *_: nullcontext())
    policy.model.zero_grad()
    states = policy.hidden_states(TOKENS, ATTEND, AT, int(AT.sum()))
    (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    monkeypatch.undo()
    return states.detach(), {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", BY_PLACE)
@pytest.mark.parametrize("lora", [None, LoRA(rank=4, alpha=4)], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_states_and_gradients_are_those_of_the_whole_layer(checkpoints, name, lora, checkpointing, monkeypatch):
    choice = published.choice(name)
    policy = load_policy(
        ModelConfig(path=str(checkpoints / name), lora=lora, gradient_checkpointing=checkpointing, **choice), seed=1
    )
    if checkpointing:
        policy.model.train()  # as in `policy.update_mode`
    whole, gradients = states_and_gradients(policy, True, monkeypatch)
    found, again = states_and_gradients(policy, False, monkeypatch)
    assert torch.allclose(found, whole, atol=1e-5)
    assert set(again) == set(gradients)
    for key, gradient in gradients.items():
        assert torch.allclose(again[key], gradient, atol=1e-5 * float(gradient.abs().max()) + 1e-9), key


def test_operations_go_down_by_what_is_not_asked_for(checkpoints, monkeypatch):
    policy = load_policy(ModelConfig(path=str(checkpoints / "llada")))
    spared = shape_of(policy.published_config).position_wise

    def operations(at):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            policy.hidden_states(TOKENS, None, at, int(at.sum()))
        return counter.get_total_flops()

    every = torch.ones_like(AT)
    assert operations(every) - operations(AT) == 2 * spared * int((~AT).sum())


def test_nothing_is_left_on_the_network(checkpoints):
    policy = load_policy(ModelConfig(path=str(checkpoints / "llada")))
    policy.hidden_states(TOKENS, None, AT)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in policy.model.modules())


def test_places_are_each_named_once_and_filled_up():
    assert unique_indices(torch.tensor([4, 0, 4, 2]), 6).tolist() == [0, 2, 4, 6]
