"""`stipule doctor --full`: checks a machine with a tiny model: products, rollouts, likelihoods, updates, checkpoints.

Everything is computed on the device and compared with the CPU, or checked for what must hold on every device.
"""

from __future__ import annotations

import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from stipule import __version__
from stipule.config.recipe import load_recipe
from stipule.errors import RecipeError
from stipule.estimators.token_logps import masked_token_logps
from stipule.models.checks import Check
from stipule.models.loading import LoRA, load_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.rng import make_generator
from stipule.rollouts.block_kv_cache import CacheConfig
from stipule.rollouts.pregenerate import pregenerate
from stipule.rollouts.pruning import Anchors, ConfidenceCutoff, FixedCutoff, TemporalPruning
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.training.checkpoint import TrainState, load_optimizer, save_checkpoint
from stipule.training.collect_rollouts import collect_rollouts
from stipule.training.context import RunContext
from stipule.training.rl_step import update_policy
from stipule.training.settings import Recipe
from stipule.types import MaskSamples, Rollouts

ROWS = 8
REPORT = "report this table, the command and the first failing line"
Result = tuple[bool, str, str]  # whether it passed, what was measured, why it matters
WAIT = "synchronizing CUDA operation"  # the warning of torch.cuda.set_sync_debug_mode


@dataclass(frozen=True)
class _Subject:
    """The tiny model on the CPU and on the device, and what both compute."""

    recipe: Recipe
    on_cpu: MaskedPolicy
    policy: MaskedPolicy
    anchors: Anchors

    @property
    def device(self) -> torch.device:
        return self.policy.device


def environment(device: str) -> list[tuple[str, str]]:
    """What a report must name: versions and the device. Raises RecipeError for a device that is not there."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            f"--device is {device}, but torch {torch.__version__} sees no GPU; check nvidia-smi, install a "
            "CUDA build of torch, or use --device cpu"
        )
    packages = ("torch", "transformers", "accelerate", "peft", "safetensors", "tokenizers")
    rows = [("stipule", __version__), ("python", f"{platform.python_version()}, {platform.platform()}")]
    rows += [(name, version(name)) for name in packages]
    if torch.device(device).type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[1]
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        rows += [
            (
                "device",
                f"{name}, {memory / 2**30:.1f} GiB, capability {capability}, {torch.cuda.device_count()} visible",
            ),
            ("CUDA", f"{torch.version.cuda}, bfloat16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}"),
        ]
    else:
        rows += [
            ("device", f"{device}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
        ]
    return rows


def check_machine(device: str, model: str = "tiny/sudoku") -> Iterator[Check]:
    """One check after the other. A check that raises is a failed check, so that one table shows all of them."""
    recipe = load_recipe(
        "quickstart", [f"model.path={model}", "training.prompts_per_step=2", "training.num_generations=4"]
    )
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield _guarded(f"{name} product", partial(product, device, dtype))
    on_cpu, policy = load_policy(recipe.model, device="cpu"), load_policy(recipe.model, device=device)
    problems = recipe.task.problems("train")[:ROWS]
    store = pregenerate(on_cpu, recipe.task, problems, recipe.sampler, 0, ROWS)
    noise = torch.rand(ROWS, recipe.sampler.gen_length, generator=make_generator(0, 0, "doctor/anchors"))
    anchors = store.select([p.key for p in problems], 1, replace(recipe.pruning.spatial, ratio=0.15), noise)
    subject = _Subject(recipe, on_cpu, policy, anchors)
    for name, (sampler, temporal, most) in variants(recipe.sampler).items():
        yield _guarded(f"rollout: {name}", partial(rollout, subject, sampler, temporal, most))
    yield _guarded("likelihoods", partial(likelihoods, subject))
    for name, config in {
        "float32": recipe.model,
        "autocast to bfloat16": replace(recipe.model, autocast=True),
        "bfloat16 with LoRA": replace(recipe.model, dtype="bfloat16", lora=LoRA(rank=8, alpha=8)),
    }.items():
        yield _guarded(f"RL step, {name}", partial(training_step, replace(recipe, model=config), device))


def _guarded(name: str, check: Callable[[], Result]) -> Check:
    try:
        ok, measured, why = check()
    except Exception as error:  # of any kind: it is what the check has found
        ok, measured, why = False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", ""
    return Check(name, ok, measured, why, REPORT)


def product(device: str, dtype: torch.dtype) -> Result:
    """A matrix product on the device is near the exact one; float32 is not rounded to TF32."""
    generator = make_generator(0, 0, "doctor/product")
    left, right = (torch.randn(256, 256, generator=generator).to(dtype) for _ in range(2))
    exact = left.double() @ right.double()
    error = float(((left.to(device) @ right.to(device)).cpu().double() - exact).abs().max() / exact.abs().max())
    allowed = 1e-5 if dtype is torch.float32 else 1e-2
    measured = f"largest relative error {error:.1e} (allowed {allowed:g})"
    return error <= allowed, measured, "rollouts and likelihoods must be computed in the stated precision"


def variants(sampler: SemiAutoregressiveSampler) -> dict[str, tuple[SemiAutoregressiveSampler, TemporalPruning, int]]:
    """Every kind of decoding, its temporal pruning, and how often one forward pass may wait for a GPU."""
    sampler, cut = sampler.exact(), FixedCutoff(cutoff=0.15)
    return {
        "plain": (sampler, FixedCutoff(), 1),
        "STP": (sampler, cut, 1),
        "STP, random positions": (replace(sampler, remasking="random"), cut, 1),
        "STP by confidence": (sampler, ConfidenceCutoff(cutoff=0.3, threshold=0.5), 2),
        "parallel decoding": (replace(sampler, confidence_threshold=0.9), cut, 2),
        "prefix cache": (replace(sampler, cache=CacheConfig(kind="prefix")), cut, 1),
        "dual cache": (replace(sampler, cache=CacheConfig(kind="dual", refresh=3)), cut, 1),
    }


def rollout(subject: _Subject, sampler: SemiAutoregressiveSampler, temporal: TemporalPruning, most: int) -> Result:
    """The device's rollouts are whole; how many tokens equal the CPU's, and how often a forward pass waited."""
    sampled = _sample(subject, subject.policy, sampler, temporal)  # the first call compiles and allocates
    calls: list[object] = []
    hook = subject.policy.unwrapped_model.base_model.register_forward_pre_hook(lambda *_: calls.append(None))
    with counted_waits(subject.device) as waits:
        sampled = _sample(subject, subject.policy, sampler, temporal)
    hook.remove()
    expected = _sample(subject, subject.on_cpu, sampler, temporal)
    equal = float((sampled.completion_ids.cpu() == expected.completion_ids).float().mean())
    whole = not bool((sampled.completion_ids == subject.policy.mask_id).any())
    measured = f"{len(calls)} calls, {equal:.0%} of the tokens as on the CPU"
    if subject.device.type == "cuda":
        measured += f", {len(waits) / len(calls):.2f} waits a call (allowed {most}, and 4 a batch)"
    ok = whole and equal > 0.5 and len(waits) <= most * len(calls) + 4
    return ok, measured, "rounding may change a token, and with it the rest of its row; most rows must be equal"


def _sample(
    subject: _Subject, policy: MaskedPolicy, sampler: SemiAutoregressiveSampler, temporal: TemporalPruning
) -> Rollouts:
    problems = subject.recipe.task.problems("train")[:ROWS]
    noise = sampler.sample_noise(ROWS, make_generator(0, 0, "doctor/noise"))
    return sampler(policy, policy.encode([p.messages for p in problems]), noise, subject.anchors, temporal, ROWS // 2)


@contextmanager
def counted_waits(device: torch.device) -> Iterator[list[str]]:
    """Inside, every operation that makes the host wait for the GPU adds a line to the list; on a CPU none does."""
    waits: list[str] = []
    if device.type != "cuda":
        yield waits
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits += [f"{w.filename}:{w.lineno}" for w in caught if WAIT in str(w.message)]


def likelihoods(subject: _Subject) -> Result:
    """Log-probabilities and gradients of the same masked rollouts on both devices."""
    rollouts = _sample(subject, subject.on_cpu, subject.recipe.sampler, FixedCutoff())
    masks = subject.recipe.estimator.sample_masks(rollouts, 1, make_generator(0, 0, "doctor/masks"))[0]
    on_cpu, gradient_on_cpu = _logps_and_gradient(subject.on_cpu, rollouts, masks)
    moved = MaskSamples(*(tensor.to(subject.device) for tensor in vars(masks).values()))
    logps, gradient = _logps_and_gradient(subject.policy, rollouts.map(lambda t: t.to(subject.device)), moved)
    difference = float((logps - on_cpu).abs().max())
    relative = float((gradient - gradient_on_cpu).norm() / gradient_on_cpu.norm())
    measured = f"largest difference {difference:.1e} nats (allowed 1e-3), of the gradient {relative:.1e} (allowed 1e-2)"
    return difference <= 1e-3 and relative <= 1e-2, measured, "the loss must not depend on the device"


def _logps_and_gradient(policy: MaskedPolicy, rollouts: Rollouts, masks: MaskSamples) -> tuple[Tensor, Tensor]:
    parameters = list(policy.trainable_parameters().values())
    logps = masked_token_logps(policy, rollouts, masks)
    gradients = torch.autograd.grad(logps.sum(), parameters, allow_unused=True)
    return logps.detach().cpu(), torch.cat([g.flatten().cpu() for g in gradients if g is not None])


def training_step(recipe: Recipe, device: str) -> Result:
    """Rollouts, rewards and an update with given advantages change the weights; a checkpoint is read back equal."""
    needs_reference = recipe.objective.beta > 0 and recipe.model.lora is None
    policy = load_policy(recipe.model, device=device, reference=needs_reference)
    if recipe.model.lora is None:
        policy.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.trainable_parameters().values(), lr=1e-3)
    run = RunContext.single_process(recipe, policy, optimizer)
    before = {name: p.detach().clone() for name, p in policy.trainable_parameters().items()}
    rollouts, _ = collect_rollouts(run, recipe.task.problems("train")[: recipe.training.prompts_per_step], 0)
    advantages = torch.tensor([1.0, -1.0], device=policy.device).repeat(len(rollouts) // 2)
    metrics = update_policy(run, rollouts, advantages, 0)
    changed = sum(not torch.equal(before[name], p.detach()) for name, p in policy.trainable_parameters().items())
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), TrainState(step=1), policy, optimizer, None, recipe.model.path, 1)
        saved = load_policy(
            replace(recipe.model, path=f"{folder}/step-000001/model", lora=None), device=device
        ).trainable_parameters()
        load_optimizer(Path(folder) / "step-000001", policy, optimizer)
    restored = all(torch.equal(p, saved[name]) for name, p in policy.trainable_parameters().items())
    measured = (
        f"gradient norm {metrics['policy/grad_norm']:.4f}, {changed} of {len(before)} tensors changed, checkpoint "
        f"{'equal' if restored else 'different'}"
    )
    return changed > 0 and restored, measured, "an update must change the weights, and a checkpoint must restore them"
