"""Checks of text and sampling: ids, template, batches, groups, the map of steps."""

from __future__ import annotations

from dataclasses import replace

import torch

from stipule.errors import CheckpointError
from stipule.models.checks.probe import ROUNDING, Check, Probe, max_difference, single_prompt
from stipule.models.special_tokens import find_special_tokens
from stipule.rng import make_generator

AT_ONCE = 8  # prompts whose groups are denoised together


def ids(probe: Probe) -> Check:
    """Mask, end and padding are tokens of the tokenizer and rows of the embedding."""
    policy = probe.policy
    try:
        mask, eos, pad = find_special_tokens(
            policy.published_config, policy.tokenizer, policy.family, policy.vocab_size
        )
        rows = policy.unwrapped_model.get_input_embeddings().weight.shape[0]
        ok = rows == policy.vocab_size
        words = ", ".join(
            f"{n} {i} {policy.tokenizer.convert_ids_to_tokens(i)}"
            for n, i in zip(("mask", "eos", "pad"), (mask, eos, pad), strict=True)
        )
        measured = f"{words}; {rows} rows"
    except CheckpointError as cause:
        ok, measured = False, str(cause)
    return Check(
        "ids", ok, measured, "a wrong mask id trains a model that nobody has", "set model.mask_id, model.eos_id"
    )


def template(probe: Probe) -> Check:
    """An answer follows the encoded prompt at once, as the model saw it in its own training."""
    policy = probe.policy
    if policy.tokenizer.chat_template is None:
        return _template(None, "no chat template: prompts are encoded as they are")
    text = probe.texts[0]
    turns = [{"role": "user", "content": text}] if isinstance(text, str) else [dict(turn) for turn in text]
    # Words of the prompt serve as the answer: every tokenizer can write them.
    said = turns[-1]["content"]
    plain = single_prompt(policy, text).prompt_ids[0].tolist()
    whole = policy.tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": said}], return_dict=False)
    follows = policy.tokenizer.decode(whole[len(plain) :], skip_special_tokens=False).lstrip()
    end = policy.tokenizer.decode(plain[-4:])
    return _template(whole[: len(plain)] == plain and follows.startswith(said.strip()[:20]), f"prompts end in {end!r}")


def _template(ok: bool | None, measured: str) -> Check:
    return Check(
        "template", ok, measured, "a response written before or after its place is read as part of the prompt",
        "correct chat_template in the tokenizer's folder: the assistant's header must be its last words",
    )  # fmt: skip


def batch(probe: Probe) -> Check:
    """Batch mates move no log-probability, and no response."""
    rows = len(probe.texts)
    with torch.inference_mode():
        together = probe.token_logps(probe.prompts, probe.response)
        alone = [
            probe.token_logps(single_prompt(probe.policy, t), probe.response[i : i + 1])
            for i, t in enumerate(probe.texts)
        ]
    worst = max_difference(together, torch.cat(alone))
    noise = probe.sampler.sample_noise(rows, make_generator(0, 0, "noise"))
    whole = probe.sampler(probe.policy, probe.prompts, noise)
    other = 0
    for i, text in enumerate(probe.texts):
        own = replace(noise, uniform=noise.uniform[:, i : i + 1], position_noise=noise.order[i : i + 1])
        other += not torch.equal(
            probe.sampler(probe.policy, single_prompt(probe.policy, text), own).completion_ids[0],
            whole.completion_ids[i],
        )
    exact = probe.tolerance == ROUNDING[torch.float32]
    return Check(
        "batch",
        worst <= probe.tolerance and not (exact and other),
        f"largest difference {worst:.1e} nats (allowed {probe.tolerance:g}); {other} of {rows} responses differ",
        "the same prompt must get the same response and score in any batch"
        + ("" if exact else "; in bfloat16 near-ties may fall either way"),
        "try model.attention=eager and model.dtype=float32 to find which part mixes rows",
    )


def diversity(probe: Probe) -> Check:
    """A group's responses differ at the recipe's temperature, for some prompt at least; asked until one does."""
    tried = distinct = 0
    for start in range(0, len(probe.pool), AT_ONCE):
        texts = probe.pool[start : start + AT_ONCE]
        noise = probe.sampler.sample_noise(len(texts) * probe.group, make_generator(0, start, "group"))
        found = probe.sampler(probe.policy, probe.policy.encode(texts).repeat(probe.group), noise)
        groups = found.completion_ids.unflatten(0, (-1, probe.group)).tolist()
        tried += len(groups)
        distinct = sum(len({tuple(single_prompt) for single_prompt in group}) > 1 for group in groups)
        if distinct:
            break
    return Check(
        "diversity",
        distinct > 0,
        f"{distinct} of {tried} groups of {probe.group} differ at temperature {probe.sampler.temperature:g}",
        "equal responses have equal rewards: no advantage, nothing to learn",
        "raise sampler.temperature, or give harder problems",
    )


def step_map(probe: Probe) -> Check:
    """Every token was committed by one of the calls that were paid for, and every call committed something."""
    found = probe.sampler(
        probe.policy, probe.prompts, probe.sampler.sample_noise(len(probe.texts), make_generator(0, 0, "steps"))
    )
    wrong = 0
    for revealed, calls, tokens in zip(
        found.unmask_step.tolist(), found.nfe.tolist(), found.completion_ids.tolist(), strict=True
    ):
        wrong += int(set(revealed) - {-1} != set(range(calls)) or probe.policy.mask_id in tokens)
    spent = found.nfe.tolist()
    return Check(
        "step map",
        wrong == 0 and max(spent) <= probe.sampler.steps,
        f"{wrong} of {len(spent)} rows wrong; {min(spent)} to {max(spent)} calls of {probe.sampler.steps}",
        "trajectory estimators replay the calls from this map",
        "report this with the recipe's sampler section",
    )
