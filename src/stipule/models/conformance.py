"""Whether a model behaves as everything above it takes for granted: one check, one line, one reason, one remedy.

The same functions run in the tests over every family, and in `stipule doctor` on a user's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from stipule.errors import CheckpointError
from stipule.models.ids import check_ids
from stipule.models.policy import MaskedPolicy, Turns, check_bidirectional
from stipule.streams import stream
from stipule.types import Prompts, Responses

# Largest difference of a log-probability, in nats, that rounding explains.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.25}
LENGTH = 8  # response tokens of the checks that need no sampler


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it went (None: nothing to check here), and what to do about it."""

    name: str
    ok: bool | None
    measured: str
    why: str
    remedy: str


class Denoiser(Protocol):
    """The sampler's side of a check (it lives above the models)."""

    @property
    def steps(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    def draw(self, rows: int, generator: torch.Generator) -> Any: ...
    def __call__(self, policy: Any, prompts: Prompts, noise: Any) -> Responses: ...


def conformance(policy: MaskedPolicy, sampler: Denoiser, prompts: Sequence[Turns], group: int = 4) -> list[Check]:
    """All checks in order; the policy's adapters are stirred, so throw it away after.

    `prompts` should differ in length; `group` responses of each are drawn at the sampler's temperature.
    """
    probe = Probe(policy, sampler, list(prompts), group)
    return [check(probe) for check in CHECKS]


@dataclass
class Probe:
    """What the checks look at, and the measurements they share."""

    policy: MaskedPolicy
    sampler: Denoiser
    texts: list[Turns]
    group: int

    def __post_init__(self) -> None:
        self.prompts = self.policy.encode(self.texts)
        top = max(self.policy.tokenizer.get_vocab().values())
        words = [i for i in range(top + 1) if i not in (self.policy.mask_id, self.policy.eos_id, self.policy.pad_id)]
        pick = torch.randint(len(words), (len(self.texts), LENGTH), generator=stream(0, 0, "words"))
        self.response = torch.tensor(words)[pick].to(self.policy.device)

    @property
    def tolerance(self) -> float:
        low = self.policy.autocast or self.policy.core.dtype != torch.float32
        return ROUNDING[torch.bfloat16 if low else torch.float32]

    def scores(self, prompts: Prompts, response: Tensor) -> Tensor:
        """log p of every other response token, those hidden; rows x tokens."""
        hidden = (torch.arange(LENGTH, device=response.device) % 2 == 0).expand_as(response)
        tokens = torch.cat([prompts.tokens, response.masked_fill(hidden, self.policy.mask_id)], 1)
        attend = torch.cat([prompts.mask, torch.ones_like(hidden)], 1)
        at = torch.cat([torch.zeros_like(prompts.mask), hidden], 1)
        logits = self.policy.logits(tokens, None if bool(attend.all()) else attend, at)
        return logits.log_softmax(1).gather(1, response[hidden][:, None]).view(len(response), -1)


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
    prompts = Prompts(prompts.tokens[:, prompts.mask[0]], prompts.mask[:, prompts.mask[0]])
    pad = torch.full((1, 5), probe.policy.pad_id, device=prompts.tokens.device)
    padded = Prompts(
        torch.cat([pad, prompts.tokens], 1), torch.cat([torch.zeros_like(pad, dtype=torch.bool), prompts.mask], 1)
    )
    with torch.inference_mode():
        worst = _distance(probe.scores(prompts, probe.response[:1]), probe.scores(padded, probe.response[:1]))
    return Check(
        "padding",
        worst <= probe.tolerance,
        f"largest difference {worst:.1e} nats with 5 pads (allowed {probe.tolerance:g})",
        "a prompt's score must not depend on how long its batch mates are",
        "try model.attention=eager; if that helps, report the attention implementation",
    )


def batch(probe: Probe) -> Check:
    """Batch mates move no log-probability, and no response."""
    rows = len(probe.texts)
    with torch.inference_mode():
        together = probe.scores(probe.prompts, probe.response)
        alone = [probe.scores(_row(probe.policy, t), probe.response[i : i + 1]) for i, t in enumerate(probe.texts)]
    worst = _distance(together, torch.cat(alone))
    noise = probe.sampler.draw(rows, stream(0, 0, "noise"))
    whole = probe.sampler(probe.policy, probe.prompts, noise)
    other = 0
    for i, text in enumerate(probe.texts):
        own = replace(noise, uniform=noise.uniform[:, i : i + 1], order=noise.order[i : i + 1])
        other += not torch.equal(probe.sampler(probe.policy, _row(probe.policy, text), own).tokens[0], whole.tokens[i])
    exact = probe.tolerance == ROUNDING[torch.float32]
    return Check(
        "batch",
        worst <= probe.tolerance and not (exact and other),
        f"largest difference {worst:.1e} nats (allowed {probe.tolerance:g}); {other} of {rows} responses differ",
        "the same prompt must get the same response and score in any batch"
        + ("" if exact else "; in bfloat16 near-ties may fall either way"),
        "try model.attention=eager and model.dtype=float32 to find which part mixes rows",
    )


def ids(probe: Probe) -> Check:
    """Mask, end and padding are tokens of the tokenizer and rows of the embedding."""
    policy = probe.policy
    try:
        mask, eos, pad = check_ids(policy.published, policy.tokenizer, policy.family, policy.vocabulary)
        rows = policy.core.get_input_embeddings().weight.shape[0]
        ok = rows == policy.vocabulary
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


def alignment(probe: Probe) -> Check:
    """The prompts' own tokens, hidden one in four, fit best where the policy says they are."""
    policy, prompts = probe.policy, probe.prompts
    found: dict[int, list[Tensor]] = {-1: [], 0: [], 1: []}
    width = prompts.tokens.shape[1]
    place = torch.arange(width, device=prompts.tokens.device)
    inside = (prompts.mask & prompts.mask.roll(1, 1) & prompts.mask.roll(-1, 1)) & (place > 0) & (place < width - 1)
    with torch.inference_mode():
        for phase in range(4):
            hidden = inside & (place % 4 == phase)
            if not bool(hidden.any()):
                continue
            tokens = prompts.tokens.masked_fill(hidden, policy.mask_id)
            for offset, kept in found.items():
                at = hidden.roll(offset, 1)
                logp = policy.logits(tokens, prompts.mask, at).log_softmax(1)
                kept.append(logp.gather(1, prompts.tokens[hidden][:, None])[:, 0])
    if not found[0]:
        return _alignment(None, "the prompts are too short to tell")
    mean = {offset: float(torch.cat(kept).mean()) for offset, kept in found.items()}
    best = max(mean, key=lambda offset: mean[offset])
    said = ", ".join(f"{mean[o]:.2f} nats at {o:+d}" for o in (-1, 0, 1))
    if max(mean.values()) < -0.9 * torch.log(torch.tensor(float(policy.vocabulary))):
        return _alignment(None, f"{said}: no better than chance, so the model says nothing of these prompts")
    return _alignment(best == 0 or mean[best] - mean[0] < 0.5, said)


def _alignment(ok: bool | None, measured: str) -> Check:
    return Check(
        "alignment",
        ok,
        measured,
        "logits read one place off train every token on its neighbour",
        "the other value of model.shift (a2d), or the right model.family",
    )


def reference(probe: Probe) -> Check:
    """Adapters move the policy and not its reference."""
    policy = probe.policy
    with torch.inference_mode():
        before = probe.scores(probe.prompts, probe.response)
        if hasattr(policy.model, "disable_adapter"):
            with policy.reference():
                base = probe.scores(probe.prompts, probe.response)
            _stir(policy)
            moved = _distance(probe.scores(probe.prompts, probe.response), before)
            with policy.reference():
                worst = _distance(probe.scores(probe.prompts, probe.response), base)
        elif policy.frozen is not None:
            with policy.reference():
                worst, moved = _distance(probe.scores(probe.prompts, probe.response), before), 1.0
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
        beside = probe.scores(probe.prompts, probe.response)
        model.merge_adapter()  # type: ignore[operator]
        try:
            worst = _distance(probe.scores(probe.prompts, probe.response), beside)
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
        outside = probe.scores(probe.prompts, probe.response)
    dropped = [m.p for m in policy.model.modules() if isinstance(m, torch.nn.Dropout)]
    with policy.updating(stream(0, 0, "dropout")):
        inside = probe.scores(probe.prompts, probe.response).detach()
    worst = _distance(outside, inside)
    lively = any(p > 0 for p in dropped)
    return Check(
        "precision",
        None if lively else worst <= (1e-5 if probe.tolerance < 1e-3 else probe.tolerance),
        f"{policy.precision}{', autocast to bfloat16' if policy.autocast else ''}; update and evaluation differ by "
        f"{worst:.1e} nats" + (" (model.lora.dropout is on)" if lively else ""),
        "the ratio of eq. 4 is 1 only when both passes agree; another precision is another policy",
        "use one model.dtype, model.autocast and model.quantize in training and evaluation",
    )


def diversity(probe: Probe) -> Check:
    """A group's responses differ at the recipe's temperature, for some prompt at least."""
    prompts = probe.prompts.repeat(probe.group)
    rows = len(probe.texts) * probe.group
    found = probe.sampler(probe.policy, prompts, probe.sampler.draw(rows, stream(0, 0, "group")))
    groups = found.tokens.unflatten(0, (-1, probe.group)).tolist()
    distinct = [len({tuple(row) for row in group}) for group in groups]
    return Check(
        "diversity",
        max(distinct) > 1,
        f"{', '.join(map(str, distinct))} distinct of {probe.group} responses at temperature "
        f"{probe.sampler.temperature:g}",
        "equal responses have equal rewards: no advantage, nothing to learn",
        "raise sampler.temperature, or give harder problems",
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
    plain = _row(policy, text).tokens[0].tolist()
    whole = policy.tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": said}], return_dict=False)
    follows = policy.tokenizer.decode(whole[len(plain) :], skip_special_tokens=False).lstrip()
    end = policy.tokenizer.decode(plain[-4:])
    return _template(whole[: len(plain)] == plain and follows.startswith(said.strip()[:20]), f"prompts end in {end!r}")


def _template(ok: bool | None, measured: str) -> Check:
    return Check(
        "template", ok, measured, "a response written before or after its place is read as part of the prompt",
        "correct chat_template in the tokenizer's folder: the assistant's header must be its last words",
    )  # fmt: skip


def step_map(probe: Probe) -> Check:
    """Every token was committed by one of the calls that were paid for, and every call committed something."""
    found = probe.sampler(probe.policy, probe.prompts, probe.sampler.draw(len(probe.texts), stream(0, 0, "steps")))
    wrong = 0
    for revealed, calls, tokens in zip(
        found.revealed.tolist(), found.forwards.tolist(), found.tokens.tolist(), strict=True
    ):
        wrong += int(set(revealed) - {-1} != set(range(calls)) or probe.policy.mask_id in tokens)
    spent = found.forwards.tolist()
    return Check(
        "step map",
        wrong == 0 and max(spent) <= probe.sampler.steps,
        f"{wrong} of {len(spent)} rows wrong; {min(spent)} to {max(spent)} calls of {probe.sampler.steps}",
        "trajectory estimators replay the calls from this map",
        "report this with the recipe's sampler section",
    )


# Those that change the policy come last.
CHECKS: Iterable[Callable[[Probe], Check]] = (
    bidirectional,
    padding,
    batch,
    ids,
    alignment,
    template,
    diversity,
    step_map,
    reference,
    merged,
    precision,
)


def _row(policy: MaskedPolicy, text: Turns) -> Prompts:
    return policy.encode([text])


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _stir(policy: MaskedPolicy) -> None:
    """Fresh adapters change nothing; give them something to say."""
    generator = stream(0, 0, "stir")
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_((torch.randn(parameter.shape, generator=generator) / 50).to(parameter))
