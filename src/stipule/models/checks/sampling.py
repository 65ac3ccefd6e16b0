"""Checks of text and sampling: token ids, chat template, batches, groups, unmasking steps."""

from __future__ import annotations

import torch

from stipule.errors import CheckpointError
from stipule.models.checks.probe import ROUNDING, Check, Probe, max_difference, single_prompt
from stipule.models.special_tokens import find_special_tokens
from stipule.rng import make_generator

MAX_GROUPS = 8  # groups that are sampled in one batch


def ids(probe: Probe) -> Check:
    """Mask, end and padding id are tokens of the tokenizer and rows of the embedding."""
    policy = probe.policy
    try:
        special = find_special_tokens(policy.published_config, policy.tokenizer, policy.family, policy.vocab_size)
        rows = policy.unwrapped_model.get_input_embeddings().weight.shape[0]
        ok = rows == policy.vocab_size
        tokens = ", ".join(
            f"{name} {token_id} {policy.tokenizer.convert_ids_to_tokens(token_id)}"
            for name, token_id in zip(("mask", "eos", "pad"), special, strict=True)
        )
        measured = f"{tokens}; {rows} rows"
    except CheckpointError as cause:
        ok, measured = False, str(cause)
    return Check(
        "ids",
        ok,
        measured,
        "with a wrong mask id, masked positions have a token that the model was not trained to fill in",
        "set model.mask_id, model.eos_id",
    )


def template(probe: Probe) -> Check:
    """The response follows the encoded prompt directly, as in the model's own training."""
    policy = probe.policy
    if policy.tokenizer.chat_template is None:
        return _template(None, "no chat template: prompts are encoded as they are")
    prompt = probe.messages[0]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    # The text of the prompt serves as the response: every tokenizer can encode it.
    response = messages[-1]["content"]
    prompt_ids = single_prompt(policy, prompt).prompt_ids[0].tolist()
    assistant = {"role": "assistant", "content": response}
    conversation = policy.tokenizer.apply_chat_template([*messages, assistant], return_dict=False)
    remainder = policy.tokenizer.decode(conversation[len(prompt_ids) :], skip_special_tokens=False).lstrip()
    end = policy.tokenizer.decode(prompt_ids[-4:])
    follows = conversation[: len(prompt_ids)] == prompt_ids and remainder.startswith(response.strip()[:20])
    return _template(follows, f"prompts end in {end!r}")


def _template(ok: bool | None, measured: str) -> Check:
    return Check(
        "template", ok, measured, "a response that starts too early or too late is read as part of the prompt",
        "correct chat_template in the tokenizer's folder: it must end with the assistant's header",
    )  # fmt: skip


def batch(probe: Probe) -> Check:
    """The other rows of a batch change no log-probability and no response."""
    rows = len(probe.messages)
    with torch.inference_mode():
        together = probe.token_logps(probe.prompts, probe.completion_ids)
        alone = [
            probe.token_logps(single_prompt(probe.policy, prompt), probe.completion_ids[i : i + 1])
            for i, prompt in enumerate(probe.messages)
        ]
    largest = max_difference(together, torch.cat(alone))
    noise = probe.sampler.sample_noise(rows, make_generator(0, 0, "noise"))
    rollouts = probe.sampler(probe.policy, probe.prompts, noise)
    num_different = 0
    for i, prompt in enumerate(probe.messages):
        single = probe.sampler(probe.policy, single_prompt(probe.policy, prompt), noise[i : i + 1])
        num_different += not torch.equal(single.completion_ids[0], rollouts.completion_ids[i])
    exact = probe.tolerance == ROUNDING[torch.float32]
    return Check(
        "batch",
        largest <= probe.tolerance and not (exact and num_different),
        f"largest difference {largest:.1e} nats (allowed {probe.tolerance:g}); "
        f"{num_different} of {rows} responses differ",
        "a prompt must get the same response and log-probability in any batch"
        + ("" if exact else "; in bfloat16, rounding may decide between nearly equal tokens"),
        "try model.attention=eager and model.dtype=float32 to find the part that mixes rows",
    )


def diversity(probe: Probe) -> Check:
    """The responses of a group differ at the recipe's temperature, for at least one prompt. It stops at the first."""
    num_groups = num_diverse = 0
    for start in range(0, len(probe.all_messages), MAX_GROUPS):
        messages = probe.all_messages[start : start + MAX_GROUPS]
        noise = probe.sampler.sample_noise(len(messages) * probe.num_generations, make_generator(0, start, "group"))
        prompts = probe.policy.encode(messages).repeat(probe.num_generations)
        rollouts = probe.sampler(probe.policy, prompts, noise)
        groups = rollouts.completion_ids.unflatten(0, (-1, probe.num_generations)).tolist()
        num_groups += len(groups)
        num_diverse = sum(len({tuple(row) for row in group}) > 1 for group in groups)
        if num_diverse:
            break
    return Check(
        "diversity",
        num_diverse > 0,
        f"{num_diverse} of {num_groups} groups of {probe.num_generations} differ at temperature "
        f"{probe.sampler.temperature:g}",
        "equal responses have equal rewards, so all advantages are 0 and nothing is learned",
        "raise sampler.temperature, or give harder problems",
    )


def step_map(probe: Probe) -> Check:
    """Every token was unmasked by one of the counted forward passes, and every forward pass unmasked a token."""
    noise = probe.sampler.sample_noise(len(probe.messages), make_generator(0, 0, "steps"))
    rollouts = probe.sampler(probe.policy, probe.prompts, noise)
    num_wrong = 0
    for unmask_step, nfe, completion_ids in zip(
        rollouts.unmask_step.tolist(), rollouts.nfe.tolist(), rollouts.completion_ids.tolist(), strict=True
    ):
        num_wrong += int(set(unmask_step) - {-1} != set(range(nfe)) or probe.policy.mask_id in completion_ids)
    all_nfe = rollouts.nfe.tolist()
    # The response of a block model may begin inside a block: then one block more has tokens of it.
    most = probe.sampler.steps + (probe.policy.block_length is not None)
    return Check(
        "step map",
        num_wrong == 0 and max(all_nfe) <= most,
        f"{num_wrong} of {len(all_nfe)} rows wrong; {min(all_nfe)} to {max(all_nfe)} forward passes of "
        f"{probe.sampler.steps}",
        "trajectory estimators replay the forward passes from this map",
        "report this with the recipe's sampler section",
    )
