"""The mu inner updates of a step, compared with a plain rendering: one row at a time, without micro-batches."""

import math

import pytest
import torch

from stipule.config.recipe import parse_recipe
from stipule.errors import DivergenceError
from stipule.rng import make_generator
from stipule.rollouts.pruning import FixedCutoff
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.training.context import RunContext
from stipule.training.micro_batches import MicroBatch, UpdateBatch, micro_batches
from stipule.training.rl_step import StepDiverged, rl_step, update_policy
from tests.toys import COUNTDOWN, anchored, prompts, random_policy

LENGTH, ROWS, EPSILON, RATE, MAX_NORM = 8, 8, 0.2, 0.05, 0.7
ADVANTAGES = torch.tensor([1.5, -0.5, -0.5, -0.5, 0.0, 0.0, 1.0, -1.0])


def recipe_of(beta, *overrides):
    return parse_recipe(
        {
            "task": {"kind": "countdown", "prompt": "compact", "operations": "+-*", "largest": 20, "target": [1, 60]},
            "sampler": {"gen_length": LENGTH, "steps": LENGTH, "block_length": 4, "temperature": 1.0},
            "estimator": {"kind": "elbo", "num_samples": 2},
            "objective": {"kind": "grpo", "epsilon": EPSILON, "beta": beta},
            "optimizer": {"max_grad_norm": MAX_NORM},
            "training": {"num_generations": 4, "num_iterations": 2, "micro_batch_size": 3, "seed": 7},
        },
        overrides,
    )


@pytest.fixture(scope="module")
def rollouts():
    return sampled_rollouts()


def sampled_rollouts():
    policy = random_policy()
    sampler = SemiAutoregressiveSampler(gen_length=LENGTH, steps=LENGTH, block_length=4, temperature=1.0)
    noise = sampler.sample_noise(ROWS, torch.Generator().manual_seed(0))
    anchors = anchored(policy, ROWS, LENGTH, 1)
    return sampler(policy, prompts(policy, 2).repeat(4), noise, anchors, FixedCutoff(cutoff=0.25))


def context(recipe):
    policy = random_policy()
    policy.model.requires_grad_(True)
    policy.ref_model = random_policy(1).model if recipe.objective.beta > 0 else None
    return RunContext.single_process(recipe, policy, torch.optim.SGD(policy.trainable_parameters().values(), lr=RATE))


def row_logps(policy, rollouts, masks, row):
    """Eq. 3 of one response, token by token: each masked copy in a forward pass of its own."""
    prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]]
    tokens = rollouts.completion_ids[row]
    total = torch.zeros(LENGTH)
    for masked, weights in zip(masks.masked[:, row], masks.loss_weights[:, row], strict=True):
        if not bool((weights != 0).any()):
            continue
        input_ids = torch.cat([prompt, tokens.masked_fill(masked, policy.mask_id)])[None]
        logits = policy.logits(
            input_ids, torch.ones_like(input_ids).bool(), torch.arange(input_ids.shape[1])[None] >= len(prompt)
        )
        total = total + weights * logits.log_softmax(1).gather(1, tokens[:, None])[:, 0]
    return total


def plain_update(recipe, rollouts, advantages):
    """Metrics and weights after the inner updates, by the formulas (eq. 1, 3, 4), SGD and one gradient for all rows."""
    run = context(recipe)
    policy, beta = run.policy, recipe.objective.beta
    rows = [i for i in range(ROWS) if beta > 0 or advantages[i] != 0]
    kept = rollouts[torch.tensor(rows)]
    mask_samples = recipe.estimator.sample_masks(kept, 2, make_generator(7, 5, "views"))
    with torch.no_grad():
        old = [[row_logps(policy, kept, masks, i) for i in range(len(rows))] for masks in mask_samples]
        reference = random_policy(1)
        ref = [[row_logps(reference, kept, masks, i) for i in range(len(rows))] for masks in mask_samples]
    losses, norms, ratios, clipped, kls = [], [], [], [], []
    for masks, old_logps, ref_logps in zip(mask_samples, old, ref, strict=True):
        run.optimizer.zero_grad()
        loss = torch.zeros(())
        for i, row in enumerate(rows):
            tokens = masks.normalizer_mask[i]
            logps, advantage = row_logps(policy, kept, masks, i), float(advantages[row])
            ratio = (logps - old_logps[i]).exp()
            terms = -torch.minimum(ratio * advantage, ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantage)
            difference = ref_logps[i] - logps
            kl = difference.exp() - 1 - difference
            loss = loss + (terms + beta * kl)[tokens].mean() / ROWS
            ratios.append(float(ratio[tokens].detach().mean()))
            kls.append(float(kl[tokens].detach().mean()))
            is_clipped = ((ratio > 1 + EPSILON) & (advantage > 0)) | ((ratio < 1 - EPSILON) & (advantage < 0))
            clipped.append(float(is_clipped[tokens].float().mean()))
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.trainable_parameters().values(), MAX_NORM)))
        run.optimizer.step()
    estimates = torch.stack([
        torch.stack([x[masks.normalizer_mask[i]].mean() for i, x in enumerate(logps)])
        for logps, masks in zip(old, mask_samples, strict=True)
    ])  # fmt: skip
    expected = {
        "policy/loss": sum(losses) / 2,
        "policy/grad_norm": sum(norms) / 2,
        "policy/ratio": sum(ratios) / len(ratios),
        "policy/clip_ratio": sum(clipped) / len(clipped),
        "policy/frac_zero_advantage": 1 - len(rows) / ROWS,
        "variance/estimate": float(estimates.var(0, correction=1).mean()),
    }
    if beta:
        expected["policy/kl"] = sum(kls) / len(kls)
    calls = {"update": sum(int(m.needs_forward.sum()) for m in mask_samples)}
    calls["logps"] = calls["update"] * (beta > 0) + int(mask_samples[1].needs_forward.sum())
    assert max(norms) > MAX_NORM > 0  # the clip acts
    return expected, policy.trainable_parameters(), calls


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("micro_batch_size", [3, 8])
def test_metrics_weights_and_forward_passes_equal_the_plain_rendering(beta, micro_batch_size, rollouts):
    recipe = recipe_of(beta, f"training.micro_batch_size={micro_batch_size}")
    expected, weights, calls = plain_update(recipe, rollouts, ADVANTAGES)
    run, updates = context(recipe), []
    metrics = update_policy(run, rollouts, ADVANTAGES, 5, lambda: updates.append(len(updates)))
    assert updates == [0, 1]
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, rel=2e-3, abs=1e-5), key
    for name, weight in run.policy.trainable_parameters().items():
        assert torch.allclose(weight, weights[name], atol=2e-4), name
    assert {phase: run.timer.nfe[phase] for phase in calls} == calls


def test_without_any_advantage_nothing_is_computed_and_nothing_changes(rollouts):
    run = context(recipe_of(0.0))
    before = {name: weight.detach().clone() for name, weight in run.policy.trainable_parameters().items()}
    assert update_policy(run, rollouts, torch.zeros(ROWS), 0) == {"policy/frac_zero_advantage": 1.0}
    assert run.timer.nfe["update"] == run.timer.nfe["logps"] == 0
    assert all(torch.equal(weight, before[name]) for name, weight in run.policy.trainable_parameters().items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(bad, rollouts):
    run = context(recipe_of(0.0))
    before = {name: weight.detach().clone() for name, weight in run.policy.trainable_parameters().items()}
    run.processes.clip_grad_norm = lambda parameters, max_grad_norm: torch.tensor(bad)
    with pytest.raises(DivergenceError, match=rf"inner update 1 has loss .* and gradient norm {bad}"):
        update_policy(run, rollouts, ADVANTAGES, 0)
    assert all(torch.equal(weight, before[name]) for name, weight in run.policy.trainable_parameters().items())


def test_a_step_that_diverges_says_what_it_had_sampled():
    run = context(recipe_of(0.0, "training.prompts_per_step=2", "sampler.temperature=2.0"))
    run.recipe.task.problems("train")
    run.processes.clip_grad_norm = lambda parameters, max_grad_norm: torch.tensor(math.nan)
    object.__setattr__(run.recipe, "advantage", lambda rewards, num_generations: ADVANTAGES)
    with pytest.raises(StepDiverged) as raised:
        rl_step(run, COUNTDOWN.problems("train")[:2], 0)
    result = raised.value.result
    assert len(result.rollouts) == len(result.rewards.rewards) == ROWS
    assert torch.equal(result.advantages, ADVANTAGES) and result.metrics == {}


def test_micro_batches_are_consecutive_and_their_weights_add_up_to_one(rollouts):
    assert micro_batches(slice(2, 9), 3) == [slice(2, 5), slice(5, 8), slice(8, 9)]
    recipe = recipe_of(0.0)
    masks = recipe.estimator.sample_masks(rollouts, 2, torch.Generator().manual_seed(0))
    batches = [MicroBatch(rows) for rows in micro_batches(slice(0, ROWS), 3)]
    batch = UpdateBatch(recipe.estimator, rollouts, ADVANTAGES, masks, batches, ROWS, rollouts.loss_mask.sum())
    for averages_tokens in (True, False):
        weights = [float(batch.loss_weight(b, masks[0], averages_tokens)) for b in batches]
        tokens = rollouts.loss_mask.sum(1).tolist()
        fractions = [
            sum(tokens[b.rows]) / sum(tokens) if averages_tokens else (b.rows.stop - b.rows.start) / ROWS
            for b in batches
        ]
        assert weights == pytest.approx(fractions) and sum(weights) == pytest.approx(1.0)
    dummy = MicroBatch(slice(0, 1), is_dummy=True)
    assert batch.loss_weight(dummy, masks[0], True) == batch.metric_weight(dummy, masks[0]) == 0.0
    has_tokens = rollouts.loss_mask.any(1)
    assert [float(batch.metric_weight(b, masks[0])) for b in batches] == pytest.approx(
        [float(has_tokens[b.rows].sum() / (2 * has_tokens.sum())) for b in batches]
    )
