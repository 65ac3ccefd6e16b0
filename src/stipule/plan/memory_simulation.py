"""Simulates the peak memory of a step: the step's code runs on tensors without data, and their bytes are counted.

No formula estimates memory. So the tensors that autograd saves, the copies of LoRA, the effect of checkpointing and
the chunks of logits are those of the installed versions of torch, transformers and peft at these shapes.
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

from stipule.estimators.token_logps import MAX_LOGITS, MAX_LOGITS_ON_DEVICE, copies_per_sequence, target_logps
from stipule.models.autocast import prepare_autocast
from stipule.models.masked_policy import MaskedPolicy
from stipule.plan.dummy_model import dummy_policy, full_length_rollouts, mask_samples_of_step, trainable_parameters
from stipule.rollouts.token_sampling import sample_tokens
from stipule.training.cost import max_candidates
from stipule.training.micro_batches import micro_batches
from stipule.training.settings import Recipe
from stipule.types import MaskSamples

# bitsandbytes' NF4 with double quantisation: 4 bits a number, an 8-bit scale per 64 numbers, a float32 per 256 scales.
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8


@dataclass(frozen=True)
class PeakMemory:
    """Bytes: static memory by what it contains, then the peak of each phase of a step, static memory included."""

    weights: int  # without adapters
    adapters: int
    gradients: int
    optimizer: int  # AdamW's two moments
    reference: int  # a frozen copy of the weights: full fine-tuning with objective.beta > 0
    rollout: int
    logps: int
    update: int  # forward and backward pass of the largest micro-batch
    optimizer_step: int

    @property
    def static(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer + self.reference

    @property
    def peak(self) -> int:
        return max(self.rollout, self.logps, self.update, self.optimizer_step)

    @property
    def largest_phase(self) -> str:
        """The phase of the step with the highest peak."""
        phases = ("rollout", "logps", "update", "optimizer_step")
        return max(phases, key=lambda name: int(getattr(self, name)))


class AllocatedBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are created inside the context, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def ignore(self, tensors: list[Tensor]) -> None:
        """Excludes the storages of existing tensors, and so also of their views."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._subtract, size)

    def _subtract(self, size: int) -> None:
        self.current -= size


def simulate_memory(
    recipe: Recipe, config_json: Mapping[str, Any], prompt_length: int, padded: bool, accelerator: bool
) -> PeakMemory:
    """The peaks of one RL step after the first one, when optimizer state and gradients exist.

    Responses have full length. `padded`: prompts differ in length. `accelerator`: AdamW updates all parameters at once
    there, which needs a temporary copy of one moment of all of them; on a CPU it updates them one by one.
    """
    settings, gen_length = recipe.training, recipe.sampler.gen_length
    rollouts = full_length_rollouts(recipe, prompt_length, padded)
    masks = _largest_micro_batch(recipe, mask_samples_of_step(recipe, rollouts))
    masked_rows, targets = int(masks.needs_forward.sum()), int((masks.loss_weights != 0).sum())
    rows_per_rollout_call = min(len(rollouts), settings.rollout_batch_size)
    policy = dummy_policy(config_json, recipe.model, "meta")
    if recipe.model.autocast:
        prepare_autocast(policy, on_cpu=not accelerator)
    weights, unpacked = _weight_bytes(policy, recipe)
    sizes = [_bytes(p) for p in trainable_parameters(policy)]
    gradients = sum(sizes)
    adapters = gradients if recipe.model.lora else 0
    reference = weights if recipe.objective.beta > 0 and recipe.model.lora is None else 0
    optimizer = 2 * gradients
    without_gradients = weights + adapters + optimizer + reference + unpacked
    optimizer_copies = gradients if accelerator else 2 * max(sizes)

    max_logits = MAX_LOGITS_ON_DEVICE if accelerator else MAX_LOGITS
    copies = copies_per_sequence(policy.block_length, masks)
    shape = (masked_rows // copies, copies, prompt_length, gen_length, padded, targets)
    with FakeTensorMode():
        _make_fake(policy.model)
        logps = _logps_peak(policy, *shape, False, max_logits)
        # The backward pass creates gradients, so they are counted there.
        several_batches = len(rollouts) > settings.micro_batch_size
        update = _logps_peak(policy, *shape, True, max_logits, several_batches)
        rollout = _rollout_peak(policy, recipe, rows_per_rollout_call, prompt_length, padded)
    with_gradients = without_gradients + gradients
    return PeakMemory(
        weights,
        adapters,
        gradients,
        optimizer,
        reference,
        with_gradients + rollout,
        with_gradients + logps,
        without_gradients + update,
        with_gradients + optimizer_copies,
    )


def quantized(recipe: Recipe) -> bool:
    """Whether the base is stored in 4 bits."""
    return recipe.model.quantize is not None


def _weight_bytes(policy: MaskedPolicy, recipe: Recipe) -> tuple[int, int]:
    """Bytes of the weights without adapters, and of the largest matrix that is unpacked before multiplication.

    Only the matrices of the layers are stored in 4 bits, not embedding, LM head and norms.
    """
    lora = recipe.model.lora is not None
    sizes = {id(p): _bytes(p) for n, p in policy.unwrapped_model.named_parameters() if not (lora and "lora_" in n)}
    if not quantized(recipe):
        return sum(sizes.values()), 0
    head = policy.unwrapped_model.get_output_embeddings()
    packed = [m.weight for m in policy.unwrapped_model.modules() if isinstance(m, nn.Linear) and m is not head]
    packed = [w for w in packed if id(w) in sizes]
    unchanged = sum(sizes.values()) - sum(map(_bytes, packed))
    return unchanged + int(NF4_BYTES * sum(w.numel() for w in packed)), max(map(_bytes, packed))


def _largest_micro_batch(recipe: Recipe, mask_samples: list[MaskSamples]) -> MaskSamples:
    """The masks of the micro-batch, of all inner updates, that needs the most log-probabilities."""
    rows = mask_samples[0].masked.shape[1]
    slices = micro_batches(slice(0, rows), recipe.training.micro_batch_size)
    batches = [masks[batch_slice] for masks in mask_samples for batch_slice in slices]
    return max(batches, key=lambda masks: int((masks.loss_weights != 0).sum()))


def _logps_peak(
    policy: MaskedPolicy,
    rows: int,
    copies: int,
    prompt_length: int,
    gen_length: int,
    padded: bool,
    targets: int,
    backward: bool,
    max_logits: int,
    twice: bool = False,
) -> int:
    """Bytes above static memory of `estimators/token_logps.py`, for `targets` log-probabilities in `rows` sequences.

    `copies`: noisy copies of the response in each sequence of a block diffusion model.
    `twice`: with a second micro-batch, at whose start the gradients of the first exist.
    """
    allocated = AllocatedBytes()
    allocated.ignore([*policy.model.parameters(), *policy.model.buffers()])
    with allocated, torch.set_grad_enabled(backward):
        policy.model.train(backward)  # as in `policy.update_mode`: dropout of adapters, checkpointing
        for _ in range(1 + twice):
            canvas = torch.zeros(rows, prompt_length + gen_length, dtype=torch.long)
            mask = _attention_mask(canvas, padded)
            if policy.block_length is None:
                hidden_states = policy.hidden_states(canvas, mask, canvas.bool(), targets)
            else:
                noisy = torch.zeros(rows, copies, gen_length, dtype=torch.long)
                hidden_states = policy.block_hidden_states(canvas, noisy, mask, noisy.bool(), targets)
                del noisy
            logps = target_logps(policy, hidden_states, torch.zeros(targets, dtype=torch.long), max_logits)
            if backward:
                logps.sum().backward()
            del canvas, hidden_states, logps
    policy.model.eval().zero_grad(set_to_none=True)
    return allocated.peak


def _rollout_peak(policy: MaskedPolicy, recipe: Recipe, rows: int, prompt_length: int, padded: bool) -> int:
    """Bytes above static memory of a forward pass of `rollouts/sampler.py` with the most candidate positions."""
    sampler, candidates = recipe.sampler, rows * max_candidates(recipe)
    allocated = AllocatedBytes()
    allocated.ignore([*policy.model.parameters(), *policy.model.buffers()])
    with allocated, torch.no_grad():
        canvas = torch.zeros(rows, prompt_length + sampler.gen_length, dtype=torch.long)
        mask = _attention_mask(canvas, padded)
        kv_cache = None if sampler.cache is None else policy.new_kv_cache(rows, canvas.shape[1])
        if kv_cache is None:
            logits = policy.logits(canvas, mask, canvas.bool(), candidates)
        else:
            logits = policy.lm_head(kv_cache.hidden_states(torch.arange(rows), canvas, mask, canvas.bool(), candidates))
        temporal = recipe.pruning.temporal
        finishes = temporal.planned_cutoff.fraction > 0 or temporal.finish_window(sampler.gen_length) > 0
        is_argmax = torch.zeros(candidates, dtype=torch.bool) if finishes else None
        # A rule of your own reads the log-probabilities of all candidates after the tokens are sampled.
        log_probs = None if isinstance(sampler.remasking, str) else logits.log_softmax(1)
        sample_tokens(logits, torch.zeros(candidates), sampler.temperature, is_argmax, torch.tensor([policy.mask_id]))
        del log_probs
    return allocated.peak


def _attention_mask(canvas: Tensor, padded: bool) -> Tensor | None:
    return torch.ones_like(canvas, dtype=torch.bool) if padded else None


def _make_fake(model: nn.Module) -> None:
    """Replaces parameters and buffers on the meta device by tensors on a CPU without data."""
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
