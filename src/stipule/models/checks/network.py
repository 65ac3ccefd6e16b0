"""Checks of the network: what sees what, where logits stand, what adapters and precision change."""

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
    """The first position sees the last."""
    try:
        check_bidirectional(probe.policy)
        ok, measured = True, "the first logits move with the last token"
    except CheckpointError:
        ok, measured = False, "the first logits stay when the last token changes"
    return Check(
        "bidirectional",
        ok,
        measured,
        "a causal model cannot fill in from the right",
        "pip install -U 'transformers>=5.4,<6'",
    )


def padding(probe: Probe) -> Check:
    """Padding on the left moves no log-probability."""
    prompts = probe.prompts[:1]
    prompts = Prompts(prompts.prompt_ids[:, prompts.prompt_mask[0]], prompts.prompt_mask[:, prompts.prompt_mask[0]])
    pad = torch.full((1, 5), probe.policy.pad_id, device=prompts.prompt_ids.device)
    padded = Prompts(
        torch.cat([pad, prompts.prompt_ids], 1),
        torch.cat([torch.zeros_like(pad, dtype=torch.bool), prompts.prompt_mask], 1),
    )
    with torch.inference_mode():
        worst = max_difference(
            probe.token_logps(prompts, probe.response[:1]), probe.token_logps(padded, probe.response[:1])
        )
    return Check(
        "padding",
        worst <= probe.tolerance,
        f"largest difference {worst:.1e} nats with 5 pads (allowed {probe.tolerance:g})",
        "a prompt's score must not depend on how long its batch mates are",
        "try model.attention=eager; if that helps, report the attention implementation",
    )


def alignment(probe: Probe) -> Check:
    """The prompts' own tokens, hidden one in four, fit best where the policy says they are."""
    policy, prompts = probe.policy, probe.prompts
    found: dict[int, list[Tensor]] = {-1: [], 0: [], 1: []}
    width = prompts.prompt_ids.shape[1]
    place = torch.arange(width, device=prompts.prompt_ids.device)
    inside = (
        (prompts.prompt_mask & prompts.prompt_mask.roll(1, 1) & prompts.prompt_mask.roll(-1, 1))
        & (place > 0)
        & (place < width - 1)
    )
    with torch.inference_mode():
        for phase in range(4):
            hidden = inside & (place % 4 == phase)
            if not bool(hidden.any()):
                continue
            tokens = prompts.prompt_ids.masked_fill(hidden, policy.mask_id)
            for offset, kept in found.items():
                at = hidden.roll(offset, 1)
                logp = policy.logits(tokens, prompts.prompt_mask, at).log_softmax(1)
                kept.append(logp.gather(1, prompts.prompt_ids[hidden][:, None])[:, 0])
    if not found[0]:
        return _alignment(None, "the prompts are too short to tell")
    mean = {offset: float(torch.cat(kept).mean()) for offset, kept in found.items()}
    best = max(mean, key=lambda offset: mean[offset])
    said = ", ".join(f"{mean[o]:.2f} nats at {o:+d}" for o in (-1, 0, 1))
    if max(mean.values()) < -0.9 * torch.log(torch.tensor(float(policy.vocab_size))):
        return _alignment(None, f"{said}: no better than chance, so the model says nothing of these prompts")
    return _alignment(best == 0 or mean[best] - mean[0] < 0.5, said)


def _alignment(ok: bool | None, measured: str) -> Check:
    return Check(
        "alignment",
        ok,
        measured,
        "logits read one place off train every token on its neighbour",
        "the other value of model.shift_logits (a2d), or the right model.family",
    )


def reference(probe: Probe) -> Check:
    """Adapters move the policy and not its reference."""
    policy = probe.policy
    with torch.inference_mode():
        before = probe.token_logps(probe.prompts, probe.response)
        if hasattr(policy.model, "disable_adapter"):
            with policy.reference():
                base = probe.token_logps(probe.prompts, probe.response)
            _stir(policy)
            moved = max_difference(probe.token_logps(probe.prompts, probe.response), before)
            with policy.reference():
                worst = max_difference(probe.token_logps(probe.prompts, probe.response), base)
        elif policy.ref_model is not None:
            with policy.reference():
                worst, moved = max_difference(probe.token_logps(probe.prompts, probe.response), before), 1.0
        else:
            return _reference(None, "no adapter and no frozen copy")
    return _reference(
        worst <= probe.tolerance and moved > worst,
        f"reference moved {worst:.1e} nats while the policy moved {moved:.1e}",
    )


def _reference(ok: bool | None, measured: str) -> Check:
    return Check(
        "reference", ok, measured, "the KL term measures the distance from where training started",
        "load the adapter on its own base; report this if it is",
    )  # fmt: skip


def merged(probe: Probe) -> Check:
    """Adapters folded into the weights say the same as adapters beside them."""
    model = probe.policy.model
    if not hasattr(model, "merge_adapter"):
        return _merged(None, "no adapter")
    with torch.inference_mode():
        beside = probe.token_logps(probe.prompts, probe.response)
        model.merge_adapter()  # type: ignore[operator]
        try:
            worst = max_difference(probe.token_logps(probe.prompts, probe.response), beside)
        finally:
            model.unmerge_adapter()  # type: ignore[operator]
    return _merged(worst <= probe.tolerance, f"largest difference {worst:.1e} nats (allowed {probe.tolerance:g})")


def _merged(ok: bool | None, measured: str) -> Check:
    return Check(
        "merged", ok, measured, "export --merge must hand out the model that was trained",
        "keep the adapter apart (export without --merge), or merge in float32",
    )  # fmt: skip


def precision(probe: Probe) -> Check:
    """The update pass computes what sampling and evaluation compute, in the same precision."""
    policy = probe.policy
    with torch.inference_mode():
        outside = probe.token_logps(probe.prompts, probe.response)
    dropped = [m.p for m in policy.model.modules() if isinstance(m, torch.nn.Dropout)]
    with policy.update_mode(make_generator(0, 0, "dropout")):
        inside = probe.token_logps(probe.prompts, probe.response).detach()
    worst = max_difference(outside, inside)
    lively = any(p > 0 for p in dropped)
    return Check(
        "precision",
        None if lively else worst <= (1e-5 if probe.tolerance < 1e-3 else probe.tolerance),
        f"{policy.precision}{', autocast to bfloat16' if policy.autocast else ''}; update and evaluation differ by "
        f"{worst:.1e} nats" + (" (model.lora.dropout is on)" if lively else ""),
        "the ratio of eq. 4 is 1 only when both passes agree; another precision is another policy",
        "use one model.dtype, model.autocast and model.quantize in training and evaluation",
    )


def _stir(policy: MaskedPolicy) -> None:
    """Fresh adapters change nothing; give them something to say."""
    generator = make_generator(0, 0, "stir")
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_((torch.randn(parameter.shape, generator=generator) / 50).to(parameter))
