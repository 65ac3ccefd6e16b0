"""Tasks whose answers stand in running text: no anchor holds a piece of the answer, an end or a special token."""

import random
import re
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.pruning import SpatialPruning
from stipule.tasks.arithmetic import Arithmetic
from stipule.tasks.countdown import Countdown
from stipule.tasks.gsm8k import Gsm8k
from stipule.tasks.math import Math
from stipule.tasks.problem import Vocabulary
from stipule.tasks.sudoku import Sudoku
from stipule.training.pretrain import Shape, new_policy
from stipule.types import Rollouts

LENGTH = 96
# Words that straddle what is protected: half in, half out of an answer.
WORDS = ("<answer>", "</answer>", "\\boxed", "= 14", "14.", "14", "4 ", ">\n", "frac", "12", "-7")
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
PIECES = [*WORDS, "14.0", "1", "4", " ", "x", "3*(12-7)", "12 - 7 * 3", "\\boxed{", "}", "so ", "\n", "1,400", "28/2"]
PIECES += ["\\frac{1}{2}", "\\tfrac {1} {2}", "1234432121433412", "140", "\\boxed{14}", "<answer>14</answer>", "END"]


@dataclass(frozen=True)
class Letters:
    """All of printable ASCII and some longer words, as a vocabulary."""

    vocabulary = Vocabulary(
        (*WORDS, *(c for c in CHARACTERS if c not in WORDS)), "|".join([*map(re.escape, WORDS), r"[\s\S]"])
    )

    def demonstrations(self, rng):
        raise NotImplementedError


@pytest.fixture(scope="module")
def speller():
    return new_policy(Shape(width=16, layers=1, heads=1, mlp=16), Letters(), seed=0, autocast=False)


GSM8K, MATH, COUNTDOWN, SUDOKU, ARITHMETIC = Gsm8k(), Math(), Countdown(), Sudoku(), Arithmetic()
ASKED = {
    "gsm8k": (GSM8K, GSM8K.problem("q", "14", "work")),
    "math": (MATH, MATH.problem("q", "\\frac{1}{2}", "work")),
    "math number": (MATH, MATH.problem("q", "14", "work")),
    "countdown": (COUNTDOWN, COUNTDOWN.problem((3, 7, 12), 15)),
    "sudoku": (SUDOKU, SUDOKU.problem("0204032001400402")),
    "arithmetic": (ARITHMETIC, ARITHMETIC.problem(7, "+", 7)),
}


def secret(name, text):
    """Characters that no anchor may touch, found anew: character by character, without the task's own spans."""
    held = set()
    for found in re.finditer(r"<answer>[\s\S]*?(?:</answer>|$)|</answer>", text):
        held |= set(range(*found.span()))
    at = text.find("\\boxed{")
    while at >= 0:
        depth, end = 0, at
        for end in range(at, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if text[end] == "}" and depth == 0:
                break
        held |= set(range(at, end + 1))
        at = text.find("\\boxed{", end)
    if name in ("gsm8k", "math number", "arithmetic"):
        for found in re.finditer(r"\d+(?:,\d{3})*(?:\.\d+)?", text):
            if Fraction(found.group().replace(",", "")) == 14:
                held |= set(range(*found.span()))
    if name == "math":
        for found in re.finditer(r"\\t?frac *\{1\} *\{2\}", text):
            held |= set(range(*found.span()))
    if name == "sudoku":
        for found in re.finditer("1234432121433412", text):
            held |= set(range(*found.span()))
    if name == "countdown":
        for found in re.finditer(r"(?<![0-9])3\*\(12-7\)|(?<![0-9])12 - 7 \* 3(?![0-9])", text):
            held |= set(range(*found.span()))
    return held


def respond(policy, text):
    """A response of fixed length with an end, and noise behind it."""
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [policy.eos_id if token is None else token for token in ids][: LENGTH - 1]
    tokens = torch.tensor([[*ids, policy.eos_id, *([ids[0] if ids else policy.eos_id] * LENGTH)][:LENGTH]])
    live = torch.arange(LENGTH)[None] <= len(ids)
    return Rollouts(
        prompt_ids=tokens[:, :1],
        prompt_mask=torch.ones(1, 1, dtype=torch.bool),
        completion_ids=tokens,
        sampled_mask=torch.ones_like(live),
        completion_mask=live,
        unmask_step=torch.zeros_like(tokens),
        confidence=torch.rand(1, LENGTH, generator=torch.Generator().manual_seed(len(ids))),
        nfe=torch.ones(1, dtype=torch.long),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25), st.sampled_from(sorted(ASKED)), st.integers(0, 99))
def test_no_anchor_holds_an_answer_an_end_or_a_special_token(speller, pieces, name, seed):
    task, problem = ASKED[name]
    text = "".join(pieces).replace("END", "<|eot_id|>")
    responses = respond(speller, text)
    eligible = eligible_tokens(speller, task, [problem], responses)
    store = AnchorStore(LENGTH, speller.vocab_size)
    store.put([problem.key], responses, eligible, torch.tensor([True]))
    noise = torch.rand(1, LENGTH, generator=torch.Generator().manual_seed(seed))
    keep = random.Random(seed).choice(["confident", "random"])
    placed = store.select([problem.key], 2, SpatialPruning(ratio=0.9, keep=keep), noise)
    special = {speller.eos_id, speller.pad_id, speller.mask_id, *speller.tokenizer.all_special_ids}
    row = responses.tokens[0].tolist()
    spelled = [
        speller.token_text(token) if alive else ""
        for token, alive in zip(row, responses.completion_mask[0].tolist(), strict=True)
    ]
    held = secret(name, "".join(spelled))
    at = 0
    for place, piece in enumerate(spelled):
        if bool(placed.fixed_mask[0, place]):
            assert row[place] not in special and bool(responses.completion_mask[0, place])
            assert not held & set(range(at, at + len(piece))), ("".join(spelled), piece)
        at += len(piece)
    assert torch.equal(placed.fixed_mask[0], placed.fixed_mask[1])


@pytest.mark.parametrize("name", sorted(ASKED))
def test_ordinary_words_can_be_anchors(speller, name):
    task, problem = ASKED[name]
    responses = respond(speller, "so x is then y <answer>14</answer>")
    assert int(eligible_tokens(speller, task, [problem], responses).sum()) == len("so x is then y ")
