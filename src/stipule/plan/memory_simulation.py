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

from stipule.estimators.token_logps import MAX_LOGITS, MAX_LOGITS_ON_DEVICE, target_logps
from stipule.models.autocast import prepare_autocast
from stipule.models.masked_policy import MaskedPolicy
from stipule.plan.dummy_model import dummy_policy, full_length_rollouts, mask_samples_of_step, trainable_parameters
from stipule.rollouts.token_sampling import sample_tokens
from stipule.training.cost import candidates_per_call
from stipule.training.micro_batches import micro_batches
from stipule.training.settings import Recipe
from stipule.types import MaskSamples

# bitsandbytes' NF4 with double quantisation: 4 bits, an 8-bit scale for 64 numbers, a float32 for 256 scales.
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8


@dataclass(frozen=True)
class PeakMemory:
    """Bytes: what is held throughout, and the most that is held in each part of a step, that included."""

    weights: int  # without adapters
    adapters: int
    gradients: int
    optimizer: int  # AdamW's two moments
    reference: int  # the frozen copy of full fine-tuning with kl > 0
    rollout: int
    logps: int
    update: int  # forward and backward of the largest portion
    optimizer_step: int

    @property
    def static(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer + self.reference

    @property
    def peak(self) -> int:
        return max(self.rollout, self.logps, self.update, self.optimizer_step)

    @property
    def largest_phase(self) -> str:
        """The part of the step that needs the most."""
        parts = ("rollout", "logps", "update", "optimizer_step")
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


def simulate_memory(
    recipe: Recipe, published: Mapping[str, Any], prompt: int, padded: bool, accelerator: bool
) -> PeakMemory:
    """The peaks of one RL step after the first, when optimizer and gradients exist.

    Responses are taken at full length. `accelerator`: AdamW then works on all parameters at once and needs a copy of
    a moment of each; on a CPU it goes one by one. `prompt` is in tokens; `padded`: whether prompts differ in length.
    """
    settings, sampler = recipe.training, recipe.sampler
    responses = full_length_rollouts(recipe, prompt, padded)
    portion, view = _largest(recipe, mask_samples_of_step(recipe, responses))
    asked, hidden = int(view.needs_forward[:, portion].sum()), int((view.loss_weights[:, portion] != 0).sum())
    rows = min(len(responses), settings.rollout_batch_size)
    policy = dummy_policy(published, recipe.model, "meta")
    if recipe.model.autocast:
        prepare_autocast(policy, on_cpu=not accelerator)
    weights, unpacked = _base(policy, recipe)
    sizes = [_bytes(p) for p in trainable_parameters(policy)]
    gradients = sum(sizes)
    adapters = gradients if recipe.model.lora else 0
    reference = weights if recipe.objective.beta > 0 and recipe.model.lora is None else 0
    optimizer = 2 * gradients
    quiet = weights + adapters + optimizer + reference + unpacked
    stepping = gradients if accelerator else 2 * max(sizes)

    at_once = MAX_LOGITS_ON_DEVICE if accelerator else MAX_LOGITS
    with FakeTensorMode():
        _make_fake(policy.model)
        score = _scoring(policy, asked, prompt, sampler.gen_length, padded, hidden, False, at_once)
        # Gradients come into being in the backward pass itself, and are counted there.
        several = len(responses) > settings.micro_batch_size
        update = _scoring(policy, asked, prompt, sampler.gen_length, padded, hidden, True, at_once, several)
        rollout = _denoising(policy, recipe, rows, prompt, padded)
    held = quiet + gradients
    return PeakMemory(
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
    numbers = {id(p): _bytes(p) for n, p in policy.unwrapped_model.named_parameters() if not (lora and "lora_" in n)}
    if not quantized(recipe):
        return sum(numbers.values()), 0
    head = policy.unwrapped_model.get_output_embeddings()
    packed = [m.weight for m in policy.unwrapped_model.modules() if isinstance(m, nn.Linear) and m is not head]
    packed = [w for w in packed if id(w) in numbers]
    kept = sum(numbers.values()) - sum(map(_bytes, packed))
    return kept + int(NF4_BYTES * sum(w.numel() for w in packed)), max(map(_bytes, packed))


def _largest(recipe: Recipe, views: list[MaskSamples]) -> tuple[slice, MaskSamples]:
    """The portion of an inner update that asks for the most tokens."""
    rows = views[0].masked.shape[1]
    every = [(part, view) for view in views for part in micro_batches(slice(0, rows), recipe.training.micro_batch_size)]
    return max(every, key=lambda pair: int((pair[1].loss_weights[:, pair[0]] != 0).sum()))


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
    """Bytes on top of what is held: `estimators/token_logps.py` with the counts known beforehand.

    `again`: a second portion, which finds the gradients of the first there.
    """
    live = LiveBytes()
    live.ignore([*policy.model.parameters(), *policy.model.buffers()])
    with live, torch.set_grad_enabled(backward):
        policy.model.train(backward)  # as in `policy.update_mode`: dropout of adapters, recomputed blocks
        for _ in range(1 + again):
            canvas = torch.zeros(rows, prompt + length, dtype=torch.long)
            states = policy.hidden_states(canvas, _attend(canvas, padded), canvas.bool(), hidden)
            logp = target_logps(policy, states, torch.zeros(hidden, dtype=torch.long), at_once)
            if backward:
                logp.sum().backward()
            del canvas, states, logp
    policy.model.eval().zero_grad(set_to_none=True)
    return live.peak


def _denoising(policy: MaskedPolicy, recipe: Recipe, rows: int, prompt: int, padded: bool) -> int:
    """Bytes on top of what is held: a call of `rollouts/sampler.py` with the widest window."""
    sampler, width = recipe.sampler, rows * max(candidates_per_call(recipe))
    live = LiveBytes()
    live.ignore([*policy.model.parameters(), *policy.model.buffers()])
    with live, torch.no_grad():
        canvas = torch.zeros(rows, prompt + sampler.gen_length, dtype=torch.long)
        attend = _attend(canvas, padded)
        memory = None if sampler.cache is None else policy.new_kv_cache(rows, canvas.shape[1])
        if memory is None:
            logits = policy.logits(canvas, attend, canvas.bool(), width)
        else:
            logits = policy.lm_head(
                memory.hidden_states(torch.arange(rows), canvas, attend, canvas.bool(), width)
            )
        greedy = torch.zeros(width, dtype=torch.bool) if recipe.pruning.temporal.cutoff > 0 else None
        sample_tokens(logits, torch.zeros(width), sampler.temperature, greedy, policy.mask_id)
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
