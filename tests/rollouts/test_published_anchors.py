"""The anchors of the authors' code: a fraction of the eligible tokens, confident with the whole response masked."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stipule.config.recipe import load_recipe
from stipule.errors import CheckpointError, RecipeError
from stipule.models.loading import ModelConfig, load_policy
from stipule.plan.forecast import extra_calls
from stipule.rollouts.pregenerate import pregenerate
from stipule.rollouts.pruning import SpatialPruning, select_anchors
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.sudoku import Sudoku
from stipule.training.anchor_source import temporary_store
from tests.toys import COUNTDOWN, random_policy

SUDOKU = Sudoku(prompt="compact", blanks=(6, 11), train_problems=6, test_problems=6)


@pytest.fixture(scope="module")
def tiny():
    return load_policy(ModelConfig(path="tiny/sudoku", attention="eager"))


def published_anchors(eligible, confidence, gamma):
    """Plain rendering: of the n tokens outside the answer, the int((1 - gamma) n) least confident are masked."""
    candidates = [i for i, is_eligible in enumerate(eligible) if is_eligible]
    num_masked = int((1 - gamma) * len(candidates))
    masked = sorted(candidates, key=lambda i: confidence[i])[:num_masked]
    return [i in candidates and i not in masked for i in range(len(eligible))]


@given(
    st.lists(st.lists(st.booleans(), min_size=40, max_size=40), min_size=1, max_size=3),
    st.sampled_from([0.05, 0.15, 0.25, 0.5]),
    st.integers(0, 99),
)
def test_the_fixed_tokens_are_those_of_the_authors_code(eligible, gamma, seed):
    allowed = torch.tensor(eligible)
    generator = torch.Generator().manual_seed(seed)
    confidence, noise = torch.rand(allowed.shape, generator=generator), torch.rand(allowed.shape, generator=generator)
    fixed = select_anchors(allowed, confidence, gamma, "confident", noise, "eligible")
    rows = zip(allowed.tolist(), confidence.tolist(), strict=True)
    assert fixed.tolist() == [published_anchors(row, values, gamma) for row, values in rows]


@pytest.mark.parametrize("gamma", [0.05, 0.10, 0.15, 0.20, 0.25, 0.30])
def test_the_number_of_fixed_tokens_is_the_published_one_for_every_length(gamma):
    """Python's int((1 - gamma) n) and ours agree wherever (1 - gamma) n is not a whole number, as people mean it."""
    for n in range(257):
        eligible = (torch.arange(256) < n)[None]
        count = int(
            select_anchors(eligible, torch.rand(1, 256), gamma, "confident", torch.rand(1, 256), "eligible").sum()
        )
        exact_masked = (100 - round(100 * gamma)) * n // 100
        assert count == n - exact_masked


def test_among_equal_confidences_noise_decides_and_a_row_without_eligible_tokens_has_no_anchor():
    eligible = torch.tensor([[True] * 4, [False] * 4])
    noise = torch.tensor([[0.1, 0.9, 0.3, 0.2]] * 2)
    fixed = select_anchors(eligible, torch.ones(2, 4), 0.25, "confident", noise, "eligible")
    assert fixed.tolist() == [[False, True, False, False], [False] * 4]


def test_fully_masked_confidence_is_the_probability_with_no_token_of_the_response_visible(tiny):
    problems = SUDOKU.problems("train")
    sampler = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16)
    plain = pregenerate(tiny, SUDOKU, problems, sampler, 0, 4)
    rescored = pregenerate(tiny, SUDOKU, problems, sampler, 0, 4, confidence="fully_masked")
    assert torch.equal(plain.table["token_ids"], rescored.table["token_ids"])
    assert rescored.model_calls == plain.model_calls + len(problems)  # one more forward pass for each
    prompts = tiny.encode([p.messages for p in problems])
    masks = torch.full((len(problems), 16), tiny.mask_id)
    with torch.inference_mode():
        logits = tiny.logits(
            torch.cat([prompts.prompt_ids, masks], 1),
            torch.cat([prompts.prompt_mask, torch.ones_like(masks).bool()], 1),
            torch.cat([torch.zeros_like(prompts.prompt_mask), torch.ones_like(masks).bool()], 1),
        )
    probability = logits.softmax(1).view(len(problems), 16, -1)
    expected = probability.gather(2, rescored.table["token_ids"].long()[..., None])[..., 0]
    assert torch.allclose(rescored.table["confidence"], expected, atol=1e-5)
    assert not torch.allclose(rescored.table["confidence"], plain.table["confidence"], atol=1e-2)


def test_the_forward_pass_reads_as_many_masks_as_the_text_has_tokens():
    """Responses that end early: the same probabilities as from a canvas that is as long as the text."""
    policy = random_policy()
    task = replace(COUNTDOWN, train_problems=12)
    sampler = SemiAutoregressiveSampler(gen_length=12, steps=12, block_length=12, temperature=1.0)
    store = pregenerate(policy, task, task.problems("train"), sampler, 0, 5, confidence="fully_masked")
    lengths = []
    for key, row in store.row_of_key.items():
        tokens = store.table["token_ids"][row].long()
        ends = (tokens == policy.eos_id).nonzero()[:, 0].tolist()
        lengths.append(length := ends[0] if ends else 12)
        problem = next(p for p in task.problems("train") if p.key == key)
        prompt = policy.encode([problem.messages]).prompt_ids
        short = torch.cat([prompt, torch.full((1, length), policy.mask_id)], 1)
        with torch.inference_mode():
            logits = policy.logits(
                short, torch.ones_like(short).bool(), torch.arange(short.shape[1])[None] >= prompt.shape[1]
            )
        expected = logits.softmax(1).gather(1, tokens[:length, None])[:, 0]
        assert torch.allclose(store.table["confidence"][row, :length], expected, atol=1e-4)
        assert not bool(store.table["confidence"][row, length:].any())
    assert min(lengths) < 12


def test_an_interrupted_store_without_this_setting_continues_with_the_default(tiny):
    problems = SUDOKU.problems("train")
    sampler = SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16)
    started = pregenerate(tiny, SUDOKU, problems[:3], sampler, 0, 3)
    del started.settings["confidence"]  # as an earlier version wrote it
    assert len(pregenerate(tiny, SUDOKU, problems, sampler, 0, 3, unfinished_store=started)) == len(problems)
    del started.settings["confidence"]
    with pytest.raises(RecipeError, match=r"other settings \(confidence\)"):
        pregenerate(tiny, SUDOKU, problems, sampler, 0, 3, unfinished_store=started, confidence="fully_masked")


def test_a_store_of_another_confidence_is_refused_by_name(tiny, tmp_path):
    problems = SUDOKU.problems("train")
    store = pregenerate(
        tiny, SUDOKU, problems, SemiAutoregressiveSampler(gen_length=16, steps=16, block_length=16), 0, 4
    )
    store.save(tmp_path / "a.safetensors", tiny)
    settings = [f"pruning.spatial.path={tmp_path / 'a.safetensors'}", "pruning.spatial.confidence=fully_masked"]
    with pytest.raises(CheckpointError, match="are when_unmasked, and pruning.spatial.confidence is fully_masked"):
        temporary_store(load_recipe("quickstart", settings), tiny, problems, lambda done, total: None)


def test_other_sources_have_no_fully_masked_confidence_and_its_forward_passes_are_planned():
    with pytest.raises(RecipeError, match="only pre-generated responses are scored before training"):
        SpatialPruning(ratio=0.1, source="previous_epoch", confidence="fully_masked")
    recipe = load_recipe("quickstart", ["pruning.spatial.confidence=fully_masked"])
    assert extra_calls(recipe, 10)["anchors"] == extra_calls(load_recipe("quickstart"), 10)["anchors"] * 17 // 16
