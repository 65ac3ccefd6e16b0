"""Tiny models and rollouts with known answers."""

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
    """A model with random weights, scaled up until the logits of a position depend strongly on the others."""
    policy = new_policy(Shape(width=32, layers=2, heads=2, mlp=64), COUNTDOWN, seed=seed, autocast=False)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20 if "lm_head" in name or "embed" in name else 8)
        # A trained model never predicts the mask token, so its row of the LM head is 0 here.
        lm_head = policy.unwrapped_model.get_output_embeddings().weight
        lm_head[policy.mask_id] = 0
    return policy


def prompts(policy: MaskedPolicy, count: int = 3) -> Prompts:
    """Countdown prompts of different lengths, so that some are padded."""
    return policy.encode([["3,7,12=33", "1,2=3", "20,20,20=60", "5=5"][i % 4] for i in range(count)])


def anchored(policy: MaskedPolicy, rows: int, length: int, count: int, seed: int = 0) -> Anchors:
    """`count` random anchors in each row, ordinary tokens at random positions."""
    generator = torch.Generator().manual_seed(seed)
    fixed_mask = torch.rand(rows, length, generator=generator).argsort(1).argsort(1) < count
    token_ids = torch.randint(4, policy.vocab_size, (rows, length), generator=generator)
    return Anchors(token_ids, fixed_mask)


class ConsistentPolicy:
    """A masked model whose conditionals all come from one joint table over V^L: its ELBO is log p, exactly.

    Token ids 0 .. V-1 are words, V is the mask. "Hidden states" are log-probabilities; the LM head is the identity.
    """

    def __init__(self, length: int, words: int, seed: int = 0, coupling: float = 2.0, block_length: int | None = None):
        generator = torch.Generator().manual_seed(seed)
        self.joint = (coupling * torch.randn((words,) * length, generator=generator, dtype=torch.float64)).flatten()
        self.joint = self.joint.softmax(0).view((words,) * length)
        self.length, self.words = length, words
        self.mask_id = self.eos_id = self.pad_id = words
        self.vocab_size, self.max_length, self.block_length = words, None, block_length
        self.unsampled_ids = torch.zeros(0, dtype=torch.long)
        self.device = torch.device("cpu")
        self.lm_head_matrix, self.compute_dtype = None, torch.float32

    def conditional(self, row: tuple[int, ...], position: int) -> torch.Tensor:
        """log p(x_position | the tokens of `row` that are not the mask)."""
        index = tuple(slice(None) if token == self.mask_id else token for token in row)
        table = self.joint[index]
        masked = [i for i, token in enumerate(row) if token == self.mask_id]
        others = [axis for axis, i in enumerate(masked) if i != position]
        marginal = table.sum(dim=others) if others else table
        return (marginal / marginal.sum()).log()

    def hidden_states(self, input_ids, attention_mask, position_mask, num_positions):
        """Conditional log-probabilities at the positions of `position_mask`, row by row."""
        completions, wanted = input_ids[:, -self.length :], position_mask[:, -self.length :]
        logps = [
            self.conditional(tuple(row), position)
            for row, flags in zip(completions.tolist(), wanted.tolist(), strict=True)
            for position, flag in enumerate(flags)
            if flag
        ]
        return torch.stack(logps).float() if logps else torch.zeros(0, self.words)

    def block_hidden_states(self, clean_ids, noisy_ids, attention_mask, position_mask, num_positions):
        """As above, for a block model: clean tokens in earlier blocks, masks in later ones."""
        real = torch.ones_like(clean_ids) if attention_mask is None else attention_mask.long()
        block = ((real.cumsum(1) - 1) // self.block_length)[:, -self.length :].tolist()
        rows = zip(
            clean_ids[:, -self.length :].tolist(), noisy_ids.tolist(), block, position_mask.tolist(), strict=True
        )
        logps = [
            self.block_conditional(clean, noisy, blocks, position)
            for clean, copies, blocks, flags_of_copies in rows
            for noisy, flags in zip(copies, flags_of_copies, strict=True)
            for position, flag in enumerate(flags)
            if flag
        ]
        return torch.stack(logps).float() if logps else torch.zeros(0, self.words)

    def block_conditional(self, clean, noisy, blocks, position: int) -> torch.Tensor:
        """log p(x_position | clean tokens of earlier blocks, noisy ones of its own), `blocks` of all tokens."""
        own = blocks[position]
        row = [
            (c if b < own else n if b == own else self.mask_id) for c, n, b in zip(clean, noisy, blocks, strict=True)
        ]
        return self.conditional(tuple(row), position)

    def lm_head(self, hidden_states):
        return hidden_states

    def logits(self, input_ids, attention_mask, position_mask, num_positions=None):
        return self.hidden_states(input_ids, attention_mask, position_mask, num_positions)

    def new_kv_cache(self, rows, width):
        raise NotImplementedError("no keys and values")

    def encode(self, prompts):
        raise NotImplementedError("no text")

    decode = reference = encode

    def log_p(self, row: tuple[int, ...], given: tuple[bool, ...] | None = None) -> float:
        """log p(row); with `given`, log p of the other tokens conditional on the given ones."""
        log_joint = math.log(self.joint[row])
        if given is None or not any(given):
            return log_joint
        index = tuple(token if g else slice(None) for token, g in zip(row, given, strict=True))
        return log_joint - math.log(self.joint[index].sum())

    def masked_sum(self, row: tuple[int, ...], masked: tuple[int, ...]) -> float:
        """S(M): summed log-probability of the masked tokens given the rest."""
        noisy = tuple(self.mask_id if i in masked else token for i, token in enumerate(row))
        return sum(float(self.conditional(noisy, i)[row[i]]) for i in masked)


def subsets(positions: list[int]) -> Callable[[], itertools.chain[tuple[int, ...]]]:
    """All non-empty subsets of positions."""
    return lambda: itertools.chain.from_iterable(
        itertools.combinations(positions, size) for size in range(1, len(positions) + 1)
    )


def response(
    completion_ids: list[list[int]], sampled_mask: list[list[bool]] | None = None, completion_mask=None
) -> Rollouts:
    """Finished rollouts with a prompt of one token."""
    tokens = torch.tensor(completion_ids)
    every = torch.ones_like(tokens, dtype=torch.bool)
    return Rollouts(
        prompt_ids=torch.zeros(len(tokens), 1, dtype=torch.long),
        prompt_mask=torch.ones(len(tokens), 1, dtype=torch.bool),
        completion_ids=tokens,
        sampled_mask=every if sampled_mask is None else torch.tensor(sampled_mask),
        completion_mask=every if completion_mask is None else torch.tensor(completion_mask),
        unmask_step=torch.zeros_like(tokens),
        confidence=torch.ones_like(tokens, dtype=torch.float32),
        nfe=torch.ones(len(tokens), dtype=torch.long),
        nfe_tokens=torch.ones(len(tokens), dtype=torch.long),
    )
