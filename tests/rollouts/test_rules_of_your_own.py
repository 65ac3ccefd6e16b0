"""Rules of your own for unmasking, finishing and anchors: against hand-computed numbers and against built-in rules."""

from dataclasses import dataclass, replace

import pytest
import torch

from examples.custom_pruning import JointConfidence, LastTokens
from examples.custom_remasking import Margin
from stipule.errors import StipuleError
from stipule.rollouts.anchors import AnchorStore
from stipule.rollouts.pruning import ConfidenceCutoff, FixedCutoff, SpatialPruning
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.rollouts.unmasking import checked_priority
from stipule.types import Prompts
from tests.rollouts.test_confidence_cutoff import same
from tests.rollouts.test_sampler import no_noise
from tests.toys import ConsistentPolicy, anchored, prompts, response

SAMPLER = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=8, temperature=1.0, stop_at_eos=False)


@dataclass(frozen=True)
class Confidence:
    """low_confidence, on another scale."""

    factor: float = 1000.0

    def priority(self, log_probs, token, confidence, position_noise):
        return self.factor * log_probs.gather(1, token[:, None])[:, 0].exp() - 7


@dataclass(frozen=True)
class Noise:
    def priority(self, log_probs, token, confidence, position_noise):
        return position_noise


@dataclass(frozen=True)
class AllAbove:
    """The rule of ConfidenceCutoff, as a class of its own."""

    cutoff: float = 0.5
    threshold: float = 0.3
    planned_cutoff = FixedCutoff().planned_cutoff

    def finish_window(self, gen_length):
        return int(self.cutoff * gen_length)

    def finishing_rows(self, confidence, row, rows):
        return rows & torch.tensor([bool((confidence[row == i] >= self.threshold).all()) for i in range(len(rows))])


def test_margin_is_the_difference_of_the_two_best_tokens():
    log_probs = torch.tensor([[0.5, 0.4, 0.1], [0.05, 0.6, 0.35], [1 / 3, 1 / 3, 1 / 3]]).log()
    margin = Margin().priority(log_probs, torch.tensor([0, 1, 2]), torch.ones(3), torch.zeros(3))
    assert margin.tolist() == pytest.approx([0.1, 0.25, 0.0], abs=1e-6)
    roots = Margin(exponent=0.5).priority(log_probs, torch.tensor([0, 1, 2]), torch.ones(3), torch.zeros(3))
    assert roots.tolist() == pytest.approx([0.5**0.5 - 0.4**0.5, 0.6**0.5 - 0.35**0.5, 0.0], abs=1e-6)


class TablePolicy(ConsistentPolicy):
    """Fixed probabilities of three words at each of four positions, whatever else is unmasked."""

    PROBABILITIES = ((0.55, 0.44, 0.01), (0.50, 0.20, 0.30), (0.40, 0.25, 0.35), (0.48, 0.10, 0.42))

    def __init__(self):
        super().__init__(length=4, words=3)

    def hidden_states(self, input_ids, attention_mask, position_mask, num_positions):
        table = torch.tensor(self.PROBABILITIES).log()
        return table.expand(len(input_ids), 4, 3)[position_mask[:, -4:]].clone()


@pytest.mark.parametrize(
    ("remasking", "order"),
    [("low_confidence", [0, 1, 3, 2]), (Margin(), [1, 0, 3, 2])],  # margins: 0.11, 0.20, 0.05, 0.06
)
def test_margin_unmasks_in_the_order_of_hand_computed_margins(remasking, order):
    sampler = SemiAutoregressiveSampler(
        gen_length=4, steps=4, block_length=4, temperature=0.0, stop_at_eos=False, remasking=remasking
    )
    prompt = Prompts(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    rollouts = sampler(TablePolicy(), prompt, no_noise(sampler, 1))
    assert rollouts.unmask_step[0].argsort().tolist() == order
    assert rollouts.completion_ids.tolist() == [[0, 0, 0, 0]]  # the most probable word everywhere


@pytest.mark.parametrize("steps", [16, 4])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("first_position", ["confident", "random"])
def test_a_rule_on_any_scale_unmasks_as_the_built_in_one(policy, steps, temperature, first_position):
    sampler = replace(SAMPLER, steps=steps, temperature=temperature, first_position=first_position)
    batch, noise, anchors = prompts(policy, 4), no_noise(sampler, 4), anchored(policy, 4, 16, 3)
    own = replace(sampler, remasking=Confidence())(policy, batch, noise, anchors)
    assert same(own, sampler(policy, batch, noise, anchors))
    own = replace(sampler, remasking=Noise())(policy, batch, noise, anchors)
    assert same(own, replace(sampler, remasking="random")(policy, batch, noise, anchors))


def test_a_rule_gives_the_same_rollout_in_any_company(policy):
    sampler = replace(SAMPLER, remasking=Margin())
    batch, noise = prompts(policy, 4), no_noise(sampler, 4)
    together = sampler(policy, batch, noise)
    for row in range(4):
        assert same(sampler(policy, batch[row : row + 1], noise[row : row + 1]), together[row : row + 1])


def test_equal_priorities_stay_equal_and_the_order_is_kept():
    @dataclass(frozen=True)
    class Given:
        values: tuple

        def priority(self, log_probs, token, confidence, position_noise):
            return torch.tensor(self.values)

    logits, token, confidence = torch.zeros(5, 2), torch.zeros(5, dtype=torch.long), torch.ones(5)
    ranks = checked_priority(Given((3.0, -1e30, 3.0, 5e9, 0.0)), logits, token, confidence, confidence)
    assert ranks.tolist() == pytest.approx([2 / 5, 0, 2 / 5, 3 / 5, 1 / 5])
    for wrong, message in [
        ((1.0, 2.0), "shape (2,); it must return a finite number for each of the 5 candidates"),
        ((1.0, 2.0, float("nan"), 1.0, 1.0), "not all of them finite"),
    ]:
        with pytest.raises(StipuleError) as caught:
            checked_priority(Given(wrong), logits, token, confidence, confidence)
        assert message in str(caught.value) and "Given.priority" in str(caught.value)


@pytest.mark.parametrize("num_anchors", [0, 3])
def test_a_temporal_rule_of_your_own_equals_the_built_in_one(policy, num_anchors):
    batch, noise, anchors = prompts(policy, 4), no_noise(SAMPLER, 4), anchored(policy, 4, 16, num_anchors)
    own = SAMPLER(policy, batch, noise, anchors, AllAbove())
    built_in = SAMPLER(policy, batch, noise, anchors, ConfidenceCutoff(cutoff=0.5, threshold=0.3))
    assert same(own, built_in) and not same(own, SAMPLER(policy, batch, noise, anchors))


def test_joint_confidence_finishes_by_the_product_of_the_probabilities():
    rule, row = JointConfidence(threshold=0.5), torch.tensor([0, 0, 1, 1, 2])
    confidence = torch.tensor([0.9, 0.6, 0.9, 0.5, 0.51])  # products 0.54, 0.45, 0.51
    assert rule.finishing_rows(confidence, row, torch.tensor([True, True, True])).tolist() == [True, False, True]
    assert rule.finishing_rows(confidence, row, torch.tensor([False, True, True])).tolist() == [False, False, True]


def test_joint_confidence_saves_forward_passes(policy):
    batch, noise = prompts(policy, 4), no_noise(SAMPLER, 4)
    rollouts = SAMPLER(policy, batch, noise, None, JointConfidence(cutoff=0.5, threshold=0.0))
    assert rollouts.nfe.tolist() == [9] * 4  # half of the masks in the last one
    assert (rollouts.unmask_step == 8).sum(1).tolist() == [8] * 4


def test_last_tokens_are_fixed_first_and_only_eligible_ones():
    store = AnchorStore(6, 10)
    eligible = torch.tensor([[True, True, False, True, True, False]])
    store.put(["a"], response([[1, 2, 3, 4, 5, 6]]), eligible, torch.tensor([True]))
    for ratio, fixed in [(1 / 6, [4]), (0.5, [1, 3, 4]), (5 / 6, [0, 1, 3, 4])]:
        anchors = store.select(["a"], 2, SpatialPruning(ratio=ratio, keep=LastTokens()), torch.rand(1, 6))
        assert anchors.fixed_mask[1].nonzero()[:, 0].tolist() == fixed


def test_an_anchor_rule_that_returns_another_shape_is_an_error():
    @dataclass(frozen=True)
    class Wrong:
        def priority(self, token_ids, eligible, confidence, noise):
            return confidence[0]

    store = AnchorStore(3, 10)
    store.put(["a"], response([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool), torch.tensor([True]))
    with pytest.raises(StipuleError, match="Wrong.priority returned a tensor of shape \\(3,\\)"):
        store.select(["a"], 2, SpatialPruning(ratio=0.5, keep=Wrong()), torch.rand(1, 3))
