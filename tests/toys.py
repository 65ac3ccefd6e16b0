"""Small subjects with known answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.pruning import Anchors
from stipule.tasks.countdown import Countdown
from stipule.training.pretrain import Shape, new_policy
from stipule.types import Prompts, Rollouts

COUNTDOWN = Countdown(
    prompt="compact", operations="+-*", largest=20, target=(1, 60), train_problems=64, test_problems=64
)


def random_policy(seed: int = 0) -> MaskedPolicy:
    """Random weights, enlarged until the logits of a position depend strongly on the others."""
    policy = new_policy(Shape(width=32, layers=2, heads=2, mlp=64), COUNTDOWN, seed=seed, autocast=False)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20 if "lm_head" in name or "embed" in name else 8)
        # A trained model never predicts the mask; give the random one that much sense.
        head = policy.unwrapped_model.get_output_embeddings().weight
        head[policy.mask_id] = 0
    return policy


def prompts(policy: MaskedPolicy, count: int = 3) -> Prompts:
    """Countdown prompts of different lengths, so that some are padded."""
    return policy.encode([["3,7,12=33", "1,2=3", "20,20,20=60", "5=5"][i % 4] for i in range(count)])


def anchored(policy: MaskedPolicy, rows: int, length: int, count: int, seed: int = 0) -> Anchors:
    """`count` random anchors in each row, ordinary words at random places."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.rand(rows, length, generator=generator).argsort(1).argsort(1) < count
    tokens = torch.randint(4, policy.vocab_size, (rows, length), generator=generator)
    return Anchors(tokens, fixed)


class ConsistentPolicy:
    """A masked model whose conditionals all come from one joint table over V^L: its ELBO is log p, exactly.

    Token ids 0 .. V-1 are words, V is the mask. "States" are log-probabilities, the head is the identity.
    """

    def __init__(self, length: int, words: int, seed: int = 0, coupling: float = 2.0):
        generator = torch.Generator().manual_seed(seed)
        self.joint = (coupling * torch.randn((words,) * length, generator=generator, dtype=torch.float64)).flatten()
        self.joint = self.joint.softmax(0).view((words,) * length)
        self.length, self.words = length, words
        self.mask_id = self.eos_id = self.pad_id = words
        self.vocab_size = words
        self.device = torch.device("cpu")
        self.lm_head_matrix, self.compute_dtype = None, torch.float32

    def conditional(self, row: tuple[int, ...], position: int) -> torch.Tensor:
        """log p(x_position | the tokens of `row` that are not the mask)."""
        index = tuple(slice(None) if token == self.mask_id else token for token in row)
        kept = self.joint[index]
        hidden = [i for i, token in enumerate(row) if token == self.mask_id]
        others = [axis for axis, i in enumerate(hidden) if i != position]
        marginal = kept.sum(dim=others) if others else kept
        return (marginal / marginal.sum()).log()

    def hidden_states(self, tokens, attend, at, count):
        """Every row's conditionals at the positions asked for."""
        responses, asked = tokens[:, -self.length :], at[:, -self.length :]
        rows = [
            self.conditional(tuple(row), position)
            for row, flags in zip(responses.tolist(), asked.tolist(), strict=True)
            for position, flag in enumerate(flags)
            if flag
        ]
        return torch.stack(rows).float() if rows else torch.zeros(0, self.words)

    def lm_head(self, states):
        return states

    def logits(self, tokens, attend, at, count=None):
        return self.hidden_states(tokens, attend, at, count)

    def new_kv_cache(self, rows, width):
        raise NotImplementedError("no keys and values")

    def encode(self, prompts):
        raise NotImplementedError("no text")

    decode = reference = encode

    def log_p(self, row: tuple[int, ...], given: tuple[bool, ...] | None = None) -> float:
        """log p(row), or of the tokens not in `given` conditional on those in it."""
        whole = math.log(self.joint[row])
        if given is None or not any(given):
            return whole
        index = tuple(token if g else slice(None) for token, g in zip(row, given, strict=True))
        return whole - math.log(self.joint[index].sum())

    def masked_sum(self, row: tuple[int, ...], hidden: tuple[int, ...]) -> float:
        """S(M): summed log-probability of the hidden tokens given the rest."""
        seen = tuple(self.mask_id if i in hidden else token for i, token in enumerate(row))
        return sum(float(self.conditional(seen, i)[row[i]]) for i in hidden)


def subsets(positions: list[int]) -> Callable[[], itertools.chain[tuple[int, ...]]]:
    """All non-empty subsets of positions."""
    return lambda: itertools.chain.from_iterable(
        itertools.combinations(positions, size) for size in range(1, len(positions) + 1)
    )


def response(tokens: list[list[int]], free: list[list[bool]] | None = None, live=None) -> Rollouts:
    """Finished responses with a one-token prompt."""
    x = torch.tensor(tokens)
    every = torch.ones_like(x, dtype=torch.bool)
    return Rollouts(
        prompt_ids=torch.zeros(len(tokens), 1, dtype=torch.long),
        prompt_mask=torch.ones(len(tokens), 1, dtype=torch.bool),
        completion_ids=x,
        sampled_mask=every if free is None else torch.tensor(free),
        completion_mask=every if live is None else torch.tensor(live),
        unmask_step=torch.zeros_like(x),
        confidence=torch.ones_like(x, dtype=torch.float32),
        nfe=torch.ones(len(tokens), dtype=torch.long),
    )
