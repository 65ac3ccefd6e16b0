"""Tasks with answers inside text: no anchor is a token of the answer, an end-of-text or a special token."""

import random
import re
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
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
# Tokens that lie partly inside and partly outside of an answer.
TOKENS = ("<answer>", "</answer>", "\\boxed", "= 14", "14.", "14", "4 ", ">\n", "frac", "12", "-7")
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
TEXTS = [*TOKENS, "14.0", "1", "4", " ", "x", "3*(12-7)", "12 - 7 * 3", "\\boxed{", "}", "so ", "\n", "1,400", "28/2"]
TEXTS += ["\\frac{1}{2}", "\\tfrac {1} {2}", "1234432121433412", "140", "\\boxed{14}", "<answer>14</answer>", "END"]


@dataclass(frozen=True)
class Characters:
    """A vocabulary of printable ASCII and some longer tokens."""

    vocabulary = Vocabulary(
        (*TOKENS, *(c for c in CHARACTERS if c not in TOKENS)), "|".join([*map(re.escape, TOKENS), r"[\s\S]"])
    )

    def demonstrations(self, rng):
        raise NotImplementedError


@pytest.fixture(scope="module")
def character_policy():
    return new_policy(Shape(width=16, layers=1, heads=1, mlp=16), Characters(), seed=0, autocast=False)


GSM8K, MATH, COUNTDOWN, SUDOKU, ARITHMETIC = Gsm8k(), Math(), Countdown(), Sudoku(), Arithmetic()
WORKED = Sudoku(prompt="worked")
PROBLEMS = {
    "gsm8k": (GSM8K, GSM8K.problem("q", "14", "work")),
    "math": (MATH, MATH.problem("q", "\\frac{1}{2}", "work")),
    "math number": (MATH, MATH.problem("q", "14", "work")),
    "countdown": (COUNTDOWN, COUNTDOWN.problem((3, 7, 12), 15)),
    "sudoku": (SUDOKU, SUDOKU.problem("0204032001400402")),
    "sudoku worked": (WORKED, WORKED.problem("0204032001400402")),
    "arithmetic": (ARITHMETIC, ARITHMETIC.problem(7, "+", 7)),
}


def answer_characters(name, text):
    """Characters that no anchor may contain, found character by character without the task's protected spans."""
    protected = set()
    if name == "sudoku worked":
        before_mark = re.match("[^=]*", text).group() if "=" in text else ""
        copies = [range(m.start(), m.start() + 16) for m in re.finditer("(?=1234432121433412)", text)]
        return set(range(len(before_mark), len(text))).union(*copies)
    for match in re.finditer(r"<answer>[\s\S]*?(?:</answer>|$)|</answer>", text):
        protected |= set(range(*match.span()))
    start = text.find("\\boxed{")
    while start >= 0:
        depth, end = 0, start
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if text[end] == "}" and depth == 0:
                break
        protected |= set(range(start, end + 1))
        start = text.find("\\boxed{", end)
    if name in ("gsm8k", "math number", "arithmetic"):
        for match in re.finditer(r"\d+(?:,\d{3})*(?:\.\d+)?", text):
            if Fraction(match.group().replace(",", "")) == 14:
                protected |= set(range(*match.span()))
    if name == "math":
        for match in re.finditer(r"\\t?frac *\{1\} *\{2\}", text):
            protected |= set(range(*match.span()))
    if name == "sudoku":
        for match in re.finditer("1234432121433412", text):
            protected |= set(range(*match.span()))
    if name == "countdown":
        for match in re.finditer(r"(?<![0-9])3\*\(12-7\)|(?<![0-9])12 - 7 \* 3(?![0-9])", text):
            protected |= set(range(*match.span()))
    return protected


def respond(policy, text):
    """A response of fixed length with an end, and noise behind it."""
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [policy.eos_id if token is None else token for token in ids][: LENGTH - 1]
    tokens = torch.tensor([[*ids, policy.eos_id, *([ids[0] if ids else policy.eos_id] * LENGTH)][:LENGTH]])
    completion_mask = torch.arange(LENGTH)[None] <= len(ids)
    return Rollouts(
        prompt_ids=tokens[:, :1],
        prompt_mask=torch.ones(1, 1, dtype=torch.bool),
        completion_ids=tokens,
        sampled_mask=torch.ones_like(completion_mask),
        completion_mask=completion_mask,
        unmask_step=torch.zeros_like(tokens),
        confidence=torch.rand(1, LENGTH, generator=torch.Generator().manual_seed(len(ids))),
        nfe=torch.ones(1, dtype=torch.long),
        nfe_tokens=torch.ones(1, dtype=torch.long),
    )


@given(st.lists(st.sampled_from(TEXTS), max_size=25), st.sampled_from(sorted(PROBLEMS)), st.integers(0, 99))
@example(["1,400", "14."], "arithmetic", 0)  # two numbers that are glued together
def test_no_anchor_holds_an_answer_an_end_or_a_special_token(character_policy, texts, name, seed):
    task, problem = PROBLEMS[name]
    text = "".join(texts).replace("END", "<|eot_id|>")
    rollouts = respond(character_policy, text)
    eligible = eligible_tokens(character_policy, task, [problem], rollouts)
    store = AnchorStore(LENGTH, character_policy.vocab_size)
    store.put([problem.key], rollouts, eligible, torch.tensor([True]))
    noise = torch.rand(1, LENGTH, generator=torch.Generator().manual_seed(seed))
    keep = random.Random(seed).choice(["confident", "random"])
    anchors = store.select([problem.key], 2, SpatialPruning(ratio=0.9, keep=keep), noise)
    special = {
        character_policy.eos_id,
        character_policy.pad_id,
        character_policy.mask_id,
        *character_policy.tokenizer.all_special_ids,
    }
    row = rollouts.completion_ids[0].tolist()
    token_texts = [
        character_policy.token_text(token) if is_completion else ""
        for token, is_completion in zip(row, rollouts.completion_mask[0].tolist(), strict=True)
    ]
    protected = answer_characters(name, "".join(token_texts))
    start = 0
    for index, token_text in enumerate(token_texts):
        if bool(anchors.fixed_mask[0, index]):
            assert row[index] not in special and bool(rollouts.completion_mask[0, index])
            assert not protected & set(range(start, start + len(token_text))), ("".join(token_texts), token_text)
        start += len(token_text)
    assert torch.equal(anchors.fixed_mask[0], anchors.fixed_mask[1])


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_tokens_outside_the_answer_can_be_anchors(character_policy, name):
    task, problem = PROBLEMS[name]
    answer = "=14" if name == "sudoku worked" else "<answer>14</answer>"
    rollouts = respond(character_policy, "so x is then y " + answer)
    assert int(eligible_tokens(character_policy, task, [problem], rollouts).sum()) == len("so x is then y ")
