"""Checks of the network: attention, padding, position of the logits, adapters, precision."""

from __future__ import annotations

import torch
from torch import Tensor

from stipule.errors import CheckpointError
from stipule.models.bidirectional import check_bidirectional
from stipule.models.checks.probe import Check, Probe, max_difference
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator
from stipule.types import Prompts


def bidirectional(probe: Probe) -> Check:
    """The logits of the first position depend on the last token; of a block model, of its own block only."""
    block_length = probe.policy.block_length
    try:
        check_bidirectional(probe.policy)
        ok, measured = True, "the first logits change with the last token"
        if block_length is not None:
            measured += f" of their block of {block_length}, and not with the next block"
    except CheckpointError as cause:
        ok, measured = False, "the first logits do not change with the last token"
        if block_length is not None:
            measured = str(cause)
    return Check(
        "bidirectional",
        ok,
        measured,
        "a causal model ignores the tokens to the right of a masked one",
        "pip install -U 'transformers>=5.4,<6'",
    )


def padding(probe: Probe) -> Check:
    """Padding on the left changes no log-probability."""
    prompts = probe.prompts[:1]
    prompts = Prompts(prompts.prompt_ids[:, prompts.prompt_mask[0]], prompts.prompt_mask[:, prompts.prompt_mask[0]])
    pad = torch.full((1, 5), probe.policy.pad_id, device=prompts.prompt_ids.device)
    padded = Prompts(
        torch.cat([pad, prompts.prompt_ids], 1),
        torch.cat([torch.zeros_like(pad, dtype=torch.bool), prompts.prompt_mask], 1),
    )
    completion_ids = probe.completion_ids[:1]
    with torch.inference_mode():
        largest = max_difference(probe.token_logps(prompts, completion_ids), probe.token_logps(padded, completion_ids))
    return Check(
        "padding",
        largest <= probe.tolerance,
        f"largest difference {largest:.1e} nats with 5 pads (allowed {probe.tolerance:g})",
        "a log-probability must not depend on the lengths of the other prompts in the batch",
        "try model.attention=eager; if that helps, report the attention implementation",
    )


def alignment(probe: Probe) -> Check:
    """One in four prompt tokens is masked; they are most probable at the positions that the policy reads."""
    policy, prompts = probe.policy, probe.prompts
    logps: dict[int, list[Tensor]] = {-1: [], 0: [], 1: []}
    width = prompts.prompt_ids.shape[1]
    position = torch.arange(width, device=prompts.prompt_ids.device)
    has_neighbours = (
        (prompts.prompt_mask & prompts.prompt_mask.roll(1, 1) & prompts.prompt_mask.roll(-1, 1))
        & (position > 0)
        & (position < width - 1)
    )
    with torch.inference_mode():
        for phase in range(4):
            masked = has_neighbours & (position % 4 == phase)
            if not bool(masked.any()):
                continue
            input_ids = prompts.prompt_ids.masked_fill(masked, policy.mask_id)
            for offset, values in logps.items():
                logits = policy.logits(input_ids, prompts.prompt_mask, masked.roll(offset, 1))
                values.append(logits.log_softmax(1).gather(1, prompts.prompt_ids[masked][:, None])[:, 0])
    if not logps[0]:
        return _alignment(None, "the prompts are too short for this check")
    mean = {offset: float(torch.cat(values).mean()) for offset, values in logps.items()}
    best = max(mean, key=lambda offset: mean[offset])
    measured = ", ".join(f"{mean[offset]:.2f} nats at {offset:+d}" for offset in (-1, 0, 1))
    if max(mean.values()) < -0.9 * torch.log(torch.tensor(float(policy.vocab_size))):
        return _alignment(None, f"{measured}: no better than chance, so the model cannot predict these prompts")
    return _alignment(best == 0 or mean[best] - mean[0] < 0.5, measured)


def _alignment(ok: bool | None, measured: str) -> Check:
    return Check(
        "alignment",
        ok,
        measured,
        "if logits are read one position off, every token is trained on its neighbour",
        "the other value of model.shift_logits (a2d), or the right model.family",
    )


def reference(probe: Probe) -> Check:
    """Changed adapters change the policy, but not its reference."""
    policy = probe.policy
    with torch.inference_mode():
        before = probe.token_logps(probe.prompts, probe.completion_ids)
        if hasattr(policy.model, "disable_adapter"):
            with policy.reference():
                base = probe.token_logps(probe.prompts, probe.completion_ids)
            _perturb_adapters(policy)
            policy_change = max_difference(probe.token_logps(probe.prompts, probe.completion_ids), before)
            with policy.reference():
                change = max_difference(probe.token_logps(probe.prompts, probe.completion_ids), base)
        elif policy.ref_model is not None:
            with policy.reference():
                change = max_difference(probe.token_logps(probe.prompts, probe.completion_ids), before)
            policy_change = 1.0
        else:
            return _reference(None, "no adapter and no frozen copy")
    return _reference(
        change <= probe.tolerance and policy_change > change,
        f"reference changed by {change:.1e} nats, the policy by {policy_change:.1e}",
    )


def _reference(ok: bool | None, measured: str) -> Check:
    return Check(
        "reference", ok, measured, "the KL term measures the distance to the model that training started from",
        "load the adapter on its own base; if it is, report this",
    )  # fmt: skip


def merged(probe: Probe) -> Check:
    """Merged adapters give the same log-probabilities as separate ones."""
    model = probe.policy.model
    if not hasattr(model, "merge_adapter"):
        return _merged(None, "no adapter")
    with torch.inference_mode():
        separate = probe.token_logps(probe.prompts, probe.completion_ids)
        model.merge_adapter()  # type: ignore[operator]
        try:
            largest = max_difference(probe.token_logps(probe.prompts, probe.completion_ids), separate)
        finally:
            model.unmerge_adapter()  # type: ignore[operator]
    return _merged(largest <= probe.tolerance, f"largest difference {largest:.1e} nats (allowed {probe.tolerance:g})")


def _merged(ok: bool | None, measured: str) -> Check:
    return Check(
        "merged", ok, measured, "export --merge must write the model that was trained",
        "keep the adapter separate (export without --merge), or merge in float32",
    )  # fmt: skip


def precision(probe: Probe) -> Check:
    """The update pass computes the same log-probabilities as sampling and evaluation, in the same precision."""
    policy = probe.policy
    with torch.inference_mode():
        outside = probe.token_logps(probe.prompts, probe.completion_ids)
    dropouts = [module.p for module in policy.model.modules() if isinstance(module, torch.nn.Dropout)]
    with policy.update_mode(make_generator(0, 0, "dropout")):
        inside = probe.token_logps(probe.prompts, probe.completion_ids).detach()
    largest = max_difference(outside, inside)
    has_dropout = any(p > 0 for p in dropouts)
    return Check(
        "precision",
        None if has_dropout else largest <= (1e-5 if probe.tolerance < 1e-3 else probe.tolerance),
        f"{policy.precision}{', autocast to bfloat16' if policy.autocast else ''}; update and evaluation differ by "
        f"{largest:.1e} nats" + (" (model.lora.dropout is on)" if has_dropout else ""),
        "the ratio of eq. 4 is 1 only if both passes agree; another precision is another policy",
        "use the same model.dtype, model.autocast and model.quantize in training and evaluation",
    )


def _perturb_adapters(policy: MaskedPolicy) -> None:
    """Adds noise to the adapters, because new ones do not change the logits."""
    generator = make_generator(0, 0, "stir")
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_((torch.randn(parameter.shape, generator=generator) / 50).to(parameter))
