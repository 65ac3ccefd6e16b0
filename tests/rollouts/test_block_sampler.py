"""The sampler on block diffusion models: against a plain version of SDAR's published loop, and against its schedule."""

import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from stipule.config.recipe import dump_recipe, parse_recipe
from stipule.errors import RecipeError
from stipule.estimators.token_logps import masked_token_logps
from stipule.estimators.trajectory import Trajectory
from stipule.models.loading import ModelConfig, load_policy
from stipule.report.cost_table import cost_table
from stipule.rollouts.pruning import Anchors, ConfidenceCutoff, FixedCutoff
from stipule.rollouts.sampler import Noise, SemiAutoregressiveSampler
from stipule.training.loop import train
from stipule.training.nfe_savings import nfe_saved_by_eos
from stipule.training.run_folder import RunFolder
from stipule.training.settings import Recipe
from stipule.types import Prompts
from tests.models import published
from tests.toys import COUNTDOWN

BLOCK = published.BLOCK_LENGTH
SAMPLER = SemiAutoregressiveSampler(
    gen_length=12, steps=12, block_length=BLOCK, temperature=0.0, block_schedule="separate", stop_at_eos=False
)
LENGTHS = (1, 3, 4, 6, 8, 9)  # of prompts: less than a block, whole blocks, and every remainder


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    policies = {}
    for name in ("sdar", "fast_dllm_v2"):
        published.write(name, root / name)
        policies[name] = load_policy(ModelConfig(path=str(root / name)))
    return policies


@pytest.fixture(params=["sdar", "fast_dllm_v2"])
def policy(request, policies):
    return policies[request.param]


def random_prompts(policy, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    width = max(lengths)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    ids = torch.randint(4, policy.vocab_size, mask.shape, generator=generator)
    return Prompts(ids.masked_fill(~mask, policy.pad_id), mask)


def noise_of(sampler, rows, seed=0):
    return sampler.sample_noise(rows, torch.Generator().manual_seed(seed))


def random_anchors(policy, rows, count, length=12):
    generator = torch.Generator().manual_seed(1)
    fixed = torch.rand(rows, length, generator=generator).argsort(1).argsort(1) < count
    return Anchors(torch.randint(4, policy.vocab_size, (rows, length), generator=generator), fixed)


def published_loop(policy, prompt, tokens_per_call, anchor_ids, fixed_mask):
    """SDAR's generate loop at temperature 0, one block at a time on a text that ends with the block."""
    text = torch.cat([prompt, torch.where(fixed_mask, anchor_ids, policy.mask_id)])
    calls = 0
    for start in range(len(prompt) // BLOCK * BLOCK, len(text), BLOCK):
        end = min(start + BLOCK, len(text))
        while bool((text[start:end] == policy.mask_id).any()):
            masked = (text[:end] == policy.mask_id)[None]
            logits = policy.logits(text[None, :end], None, masked)
            logits[:, policy.unsampled_ids] = -math.inf
            confidence, candidate = logits.softmax(1).max(1)
            position = masked[0].nonzero()[:, 0]
            best = confidence.topk(min(tokens_per_call, len(position))).indices
            text[position[best]] = candidate[best]
            calls += 1
    return text[len(prompt) :], calls


@pytest.mark.parametrize("steps", [12, 6])
@pytest.mark.parametrize("num_anchors", [0, 3])
def test_greedy_rollouts_are_those_of_the_published_loop(policy, steps, num_anchors):
    sampler = replace(SAMPLER, steps=steps)
    batch = random_prompts(policy)
    anchors = random_anchors(policy, len(LENGTHS), num_anchors)
    rollouts = sampler(policy, batch, noise_of(sampler, len(LENGTHS)), anchors)
    for row in range(len(LENGTHS)):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        fixed = anchors.token_ids[row], anchors.fixed_mask[row]
        with torch.no_grad():
            expected, calls = published_loop(policy, prompt, 12 // steps, *fixed)
        assert rollouts.completion_ids[row].tolist() == expected.tolist()
        assert int(rollouts.nfe[row]) == calls
    assert len(set(rollouts.completion_ids.flatten().tolist())) > 4


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("max_batch_size", [None, 2])
def test_a_row_depends_on_its_noise_only(policy, remasking, max_batch_size):
    sampler = replace(SAMPLER, temperature=1.0, remasking=remasking, steps=6)
    batch, noise = random_prompts(policy), noise_of(sampler, len(LENGTHS))
    together = sampler(policy, batch, noise, max_batch_size=max_batch_size)
    for row, length in enumerate(LENGTHS):
        for padding in (0, 3):
            ids = torch.nn.functional.pad(batch.prompt_ids[row, -length:], (padding, 0), value=policy.pad_id)
            alone = Prompts(ids[None], (torch.arange(padding + length) >= padding)[None])
            one = Noise(noise.uniform[:, row : row + 1], noise.position_noise[row : row + 1])
            rollouts = sampler(policy, alone, one)
            assert rollouts.completion_ids[0].tolist() == together.completion_ids[row].tolist()
            assert rollouts.unmask_step[0].tolist() == together.unmask_step[row].tolist()


def blocks_of(length, gen_length=12):
    """The response positions of each block after a prompt of this length."""
    index = [(length + i) // BLOCK for i in range(gen_length)]
    return [[i for i in range(gen_length) if index[i] == b] for b in sorted(set(index))]


@pytest.mark.parametrize("num_anchors", [0, 1, 5, 12])
@pytest.mark.parametrize("steps", [12, 6])
@pytest.mark.parametrize(("cutoff", "scope"), [(0.0, "global"), (0.2, "global"), (0.6, "global"), (0.25, "block")])
def test_forward_passes_are_those_of_the_closed_form(policies, num_anchors, steps, cutoff, scope):
    policy, rows = policies["sdar"], len(LENGTHS)
    sampler = replace(SAMPLER, steps=steps, temperature=1.0)
    anchors = random_anchors(policy, rows, num_anchors)
    temporal = FixedCutoff(cutoff=cutoff, scope=scope)
    rollouts = sampler(policy, random_prompts(policy), noise_of(sampler, rows), anchors, temporal)
    for row, length in enumerate(LENGTHS):
        left = math.floor(cutoff * 12 + 1e-9)
        passes = 0
        for positions in reversed(blocks_of(length)):
            masks = sum(not bool(anchors.fixed_mask[row, i]) for i in positions)
            last = min(masks, left if scope == "global" else math.floor(cutoff * BLOCK))
            left -= last
            passes += math.ceil((masks - last) * steps / 12) + (last > 0)
        assert int(rollouts.nfe[row]) == passes
        # No forward pass unmasks tokens of two blocks, and blocks are finished in order.
        by_block = [{int(s) for s in rollouts.unmask_step[row, p] if s >= 0} for p in blocks_of(length)]
        assert sorted(step for steps_of in by_block for step in steps_of) == list(range(passes))
        assert [min(s) for s in by_block if s] == sorted(min(s) for s in by_block if s)
    assert torch.equal(rollouts.completion_ids[anchors.fixed_mask], anchors.token_ids[anchors.fixed_mask])
    assert not bool((rollouts.completion_ids == policy.mask_id).any())


def test_the_cutoff_takes_the_most_probable_tokens_of_each_block(policies):
    policy = policies["sdar"]
    batch = random_prompts(policy, (4,))
    sampler = replace(SAMPLER, temperature=1.0)
    rollouts = sampler(policy, batch, noise_of(sampler, 1), temporal=FixedCutoff(cutoff=0.5))
    finished = rollouts.unmask_step[0] >= 6  # two tokens of the second block, and the whole third one
    assert [len(set(rollouts.unmask_step[0, p].tolist())) for p in blocks_of(4)] == [4, 3, 1]
    for positions in blocks_of(4)[1:]:
        end = 4 + positions[-1] + 1
        text = torch.cat([batch.prompt_ids[0], rollouts.completion_ids[0]])[:end].clone()
        last = [
            i for i in positions if int(rollouts.unmask_step[0, i]) == int(rollouts.unmask_step[0, positions].max())
        ]
        for i in last:
            text[4 + i] = policy.mask_id
        logits = policy.logits(text[None], None, (text == policy.mask_id)[None])
        logits[:, policy.unsampled_ids] = -math.inf
        assert rollouts.completion_ids[0, last].tolist() == logits.argmax(1).tolist()
    assert int(finished.sum()) == 6


@pytest.mark.parametrize(
    ("settings", "temporal"),
    [
        ({"confidence_threshold": 1e-9}, FixedCutoff()),
        ({}, ConfidenceCutoff(cutoff=0.99, threshold=0.0)),
    ],
)
def test_confidence_finishes_one_block_at_a_time(policies, settings, temporal):
    """Every token is confident enough, so each block takes one forward pass; those above the window take their own."""
    policy, rows = policies["sdar"], len(LENGTHS)
    sampler = replace(SAMPLER, temperature=1.0, steps=12, **settings)
    rollouts = sampler(policy, random_prompts(policy), noise_of(sampler, rows), temporal=temporal)
    for row, length in enumerate(LENGTHS):
        blocks = blocks_of(length)
        if settings:
            assert [len(set(rollouts.unmask_step[row, p].tolist())) for p in blocks] == [1] * len(blocks)
        else:  # one pass while 12 of 12 are masked, which is more than floor(0.99 12)
            first = 1 + (len(blocks[0]) > 1)
            assert [len(set(rollouts.unmask_step[row, p].tolist())) for p in blocks] == [first] + [1] * (
                len(blocks) - 1
            )


def test_a_row_ends_early_after_a_block_with_an_end_of_text(policies):
    policy, rows = policies["sdar"], 24
    sampler = replace(SAMPLER, temperature=1.0)
    batch = random_prompts(policy, LENGTHS * 4)
    noise = noise_of(sampler, rows)
    common = sampler(policy, batch, noise).completion_ids.flatten().mode().values
    lm_head = policy.unwrapped_model.get_output_embeddings().weight
    before = lm_head[policy.eos_id].clone()
    with torch.no_grad():
        lm_head[policy.eos_id] = lm_head[common] * 1.05
    try:
        early = replace(sampler, stop_at_eos=True)(policy, batch, noise)
        full = sampler(policy, batch, noise)
    finally:
        with torch.no_grad():
            lm_head[policy.eos_id] = before
    assert torch.equal(early.completion_mask, full.completion_mask)
    assert torch.equal(early.completion_ids[early.completion_mask], full.completion_ids[full.completion_mask])
    saved = int((full.nfe - early.nfe).sum())
    assert saved == nfe_saved_by_eos(Recipe(task=COUNTDOWN, sampler=sampler), early) > 0
    for row, length in enumerate(LENGTHS * 4):
        end = int(full.completion_mask[row].sum()) - 1
        passes = sum(len(p) for p in blocks_of(length) if p[0] <= end)  # one token each
        assert int(early.nfe[row]) == passes


def test_the_trajectory_of_a_rollout_has_the_probabilities_it_was_sampled_with(policy):
    """Recorded confidences and the trajectory likelihood, both against one plain forward pass per state."""
    rows = len(LENGTHS)
    sampler = replace(SAMPLER, temperature=1.0, steps=6)
    batch, anchors = random_prompts(policy), random_anchors(policy, rows, 2)
    rollouts = sampler(policy, batch, noise_of(sampler, rows), anchors)
    (masks,) = Trajectory().sample_masks(rollouts, 1, torch.Generator())
    with torch.no_grad():
        logps = Trajectory().combine(masked_token_logps(policy, rollouts, masks), masks, torch.zeros(rows))
    for row, length in enumerate(LENGTHS):
        for positions in blocks_of(length):
            end = length + positions[-1] + 1
            for step in {int(s) for s in rollouts.unmask_step[row, positions] if s >= 0}:
                text = torch.cat([batch.prompt_ids[row, -length:], rollouts.completion_ids[row]])[:end].clone()
                later = [i for i in positions if int(rollouts.unmask_step[row, i]) >= step]
                text[[length + i for i in later]] = policy.mask_id
                with torch.no_grad():
                    logits = policy.logits(text[None], None, (text == policy.mask_id)[None])
                full = logits.log_softmax(1)
                logits[:, policy.unsampled_ids] = -math.inf
                now = [later.index(i) for i in later if int(rollouts.unmask_step[row, i]) == step]
                chosen = [later[n] for n in now]
                tokens = rollouts.completion_ids[row, chosen]
                assert torch.allclose(logps[row, chosen], full[now, tokens], atol=1e-5)
                assert torch.allclose(rollouts.confidence[row, chosen], logits.softmax(1)[now, tokens], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_length": 6}, "blocks of 4 tokens.*sampler.block_length=4 and sampler.block_schedule=separate"),
        ({"block_schedule": "carry"}, "block_schedule carry; the model is a block diffusion model"),
    ],
)
def test_other_blocks_than_those_of_the_model_are_refused(policies, settings, message):
    sampler = replace(SAMPLER, **settings)
    with pytest.raises(RecipeError, match=message):
        sampler(policies["sdar"], random_prompts(policies["sdar"]), noise_of(sampler, len(LENGTHS)))


def test_check_prints_the_mean_over_prompts_and_refuses_other_blocks_before_loading(tmp_path):
    published.write("sdar", tmp_path / "sdar")
    (tmp_path / "sdar" / "model.safetensors").unlink()
    sizes = ["sampler.gen_length=12", "sampler.steps=6", "sampler.block_length=4"]
    data = {"task": {"kind": "countdown"}, "model": {"path": str(tmp_path / "sdar")}}
    recipe = parse_recipe(data, [*sizes, "sampler.block_schedule=separate"])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(cost_table(recipe))
    text = console.export_text()
    assert "per rollout (6.5 unpruned)" in text and "7 (108%)" in text and "prompts of every remainder" in text
    other = parse_recipe(data, sizes)
    with pytest.raises(RecipeError, match="sampler.block_schedule=separate"):
        cost_table(other)
    with pytest.raises(RecipeError, match="sampler.block_schedule=separate"):
        train(other, RunFolder.create(tmp_path / "run", dump_recipe(other)))


def test_a_model_of_full_attention_refuses_separate_blocks(tmp_path):
    published.write("llada", tmp_path / "llada")
    llada = load_policy(ModelConfig(path=str(tmp_path / "llada")))
    with pytest.raises(RecipeError, match="separate, which is for block diffusion models"):
        SAMPLER(llada, random_prompts(llada), noise_of(SAMPLER, len(LENGTHS)))
