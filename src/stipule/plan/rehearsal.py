"""Peak memory by rehearsal: the step's own code runs on tensors without contents, and their bytes are counted.

Nothing is estimated from a formula here: what autograd keeps, what LoRA copies, what checkpointing frees and what a
chunk of logits takes is what the installed versions of torch, transformers and peft do with these shapes.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stipule.estimators.score import LOGITS_AT_ONCE, LOGITS_AT_ONCE_ON_DEVICE, target_log_probabilities
from stipule.models.autocast import ease_autocast
from stipule.models.memory import KeyValues
from stipule.models.policy import MaskedPolicy
from stipule.plan.standin import full_responses, stand_in, trained, views_of_step
from stipule.rollouts.pick import pick
from stipule.training.cost import looked_at
from stipule.training.settings import Recipe
from stipule.training.update import portions
from stipule.types import Views

# bitsandbytes' NF4 with double quantisation: 4 bits, an 8-bit scale for 64 numbers, a float32 for 256 scales.
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8


@dataclass(frozen=True)
class Peaks:
    """Bytes: what is held throughout, and the most that is held in each part of a step, that included."""

    weights: int  # without adapters
    adapters: int
    gradients: int
    optimizer: int  # AdamW's two moments
    reference: int  # the frozen copy of full fine-tuning with kl > 0
    rollout: int
    score: int
    update: int  # forward and backward of the largest portion
    optimizer_step: int

    @property
    def held(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer + self.reference

    @property
    def peak(self) -> int:
        return max(self.rollout, self.score, self.update, self.optimizer_step)

    @property
    def worst(self) -> str:
        """The part of the step that needs the most."""
        parts = ("rollout", "score", "update", "optimizer_step")
        return max(parts, key=lambda name: int(getattr(self, name)))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made under it until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = call(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def ignore(self, tensors: list[Tensor]) -> None:
        """What is there already is not counted, and neither is a view of it."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


def rehearse(recipe: Recipe, published: Mapping[str, Any], prompt: int, padded: bool, accelerator: bool) -> Peaks:
    """The peaks of one RL step after the first, when optimizer and gradients exist.

    Responses are taken at full length. `accelerator`: AdamW then works on all parameters at once and needs a copy of
    a moment of each; on a CPU it goes one by one. `prompt` is in tokens; `padded`: whether prompts differ in length.
    """
    settings, sampler = recipe.training, recipe.sampler
    responses = full_responses(recipe, prompt, padded)
    portion, view = _largest(recipe, views_of_step(recipe, responses))
    asked, hidden = int(view.busy[:, portion].sum()), int((view.weight[:, portion] != 0).sum())
    rows = min(len(responses), settings.rollout_rows)
    policy = stand_in(published, recipe.model, "meta")
    if recipe.model.autocast:
        ease_autocast(policy, on_cpu=not accelerator)
    weights, unpacked = _base(policy, recipe)
    sizes = [_bytes(p) for p in trained(policy)]
    gradients = sum(sizes)
    adapters = gradients if recipe.model.lora else 0
    reference = weights if recipe.objective.kl > 0 and recipe.model.lora is None else 0
    optimizer = 2 * gradients
    quiet = weights + adapters + optimizer + reference + unpacked
    stepping = gradients if accelerator else 2 * max(sizes)

    at_once = LOGITS_AT_ONCE_ON_DEVICE if accelerator else LOGITS_AT_ONCE
    with FakeTensorMode():
        _make_fake(policy.model)
        score = _scoring(policy, asked, prompt, sampler.length, padded, hidden, False, at_once)
        # Gradients come into being in the backward pass itself, and are counted there.
        several = len(responses) > settings.score_rows
        update = _scoring(policy, asked, prompt, sampler.length, padded, hidden, True, at_once, several)
        rollout = _denoising(policy, recipe, rows, prompt, padded)
    held = quiet + gradients
    return Peaks(
        weights,
        adapters,
        gradients,
        optimizer,
        reference,
        held + rollout,
        held + score,
        quiet + update,
        held + stepping,
    )


def quantized(recipe: Recipe) -> bool:
    """Whether the base is held in 4 bits."""
    return recipe.model.quantize is not None


def _base(policy: MaskedPolicy, recipe: Recipe) -> tuple[int, int]:
    """Bytes of the weights without adapters, and of the largest matrix that is unpacked to be multiplied.

    Only matrices of the blocks are held in 4 bits: embedding, head and norms stay as they are.
    """
    lora = recipe.model.lora is not None
    numbers = {id(p): _bytes(p) for n, p in policy.core.named_parameters() if not (lora and "lora_" in n)}
    if not quantized(recipe):
        return sum(numbers.values()), 0
    head = policy.core.get_output_embeddings()
    packed = [m.weight for m in policy.core.modules() if isinstance(m, nn.Linear) and m is not head]
    packed = [w for w in packed if id(w) in numbers]
    kept = sum(numbers.values()) - sum(map(_bytes, packed))
    return kept + int(NF4_BYTES * sum(w.numel() for w in packed)), max(map(_bytes, packed))


def _largest(recipe: Recipe, views: list[Views]) -> tuple[slice, Views]:
    """The portion of an inner update that asks for the most tokens."""
    rows = views[0].hidden.shape[1]
    every = [(part, view) for view in views for part in portions(slice(0, rows), recipe.training.score_rows)]
    return max(every, key=lambda pair: int((pair[1].weight[:, pair[0]] != 0).sum()))


def _scoring(
    policy: MaskedPolicy,
    rows: int,
    prompt: int,
    length: int,
    padded: bool,
    hidden: int,
    backward: bool,
    at_once: int,
    again: bool = False,
) -> int:
    """Bytes on top of what is held: `estimators/score.py` with the counts known beforehand.

    `again`: a second portion, which finds the gradients of the first there.
    """
    live = LiveBytes()
    live.ignore([*policy.model.parameters(), *policy.model.buffers()])
    with live, torch.set_grad_enabled(backward):
        policy.model.train(backward)  # as in `policy.updating`: dropout of adapters, recomputed blocks
        for _ in range(1 + again):
            canvas = torch.zeros(rows, prompt + length, dtype=torch.long)
            states = policy.states(canvas, _attend(canvas, padded), canvas.bool(), hidden)
            logp = target_log_probabilities(policy, states, torch.zeros(hidden, dtype=torch.long), at_once)
            if backward:
                logp.sum().backward()
            del canvas, states, logp
    policy.model.eval().zero_grad(set_to_none=True)
    return live.peak


def _denoising(policy: MaskedPolicy, recipe: Recipe, rows: int, prompt: int, padded: bool) -> int:
    """Bytes on top of what is held: a call of `rollouts/denoise.py` with the widest window."""
    sampler, width = recipe.sampler, rows * max(looked_at(recipe))
    live = LiveBytes()
    live.ignore([*policy.model.parameters(), *policy.model.buffers()])
    with live, torch.no_grad():
        canvas = torch.zeros(rows, prompt + sampler.length, dtype=torch.long)
        attend = _attend(canvas, padded)
        memory = None if sampler.cache is None else KeyValues(rows, canvas.shape[1])
        if memory is None:
            logits = policy.logits(canvas, attend, canvas.bool(), width)
        else:
            logits = policy.head(memory.states(policy, torch.arange(rows), canvas, attend, canvas.bool(), width))
        greedy = torch.zeros(width, dtype=torch.bool) if recipe.pruning.temporal.cutoff > 0 else None
        pick(logits, torch.zeros(width), sampler.temperature, greedy, policy.mask_id)
    return live.peak


def _attend(canvas: Tensor, padded: bool) -> Tensor | None:
    return torch.ones_like(canvas, dtype=torch.bool) if padded else None


def _make_fake(model: nn.Module) -> None:
    """Parameters and buffers of the meta device become tensors that claim a CPU and hold nothing."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
