"""Pre-training of a tiny base from scratch: the ELBO of eq. 3 as a loss, over a task's demonstrations."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float, Int
from torch import Tensor

from stipule.atomic_io import replace_folder
from stipule.errors import RecipeError
from stipule.models.families import family_of, write_llada_config
from stipule.models.loading import save_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.tiny_tokenizer import build_tokenizer
from stipule.rng import make_generator
from stipule.tasks.countdown import Countdown
from stipule.tasks.problem import Demonstrator
from stipule.tasks.sudoku import Sudoku


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the network."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 344

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.mlp) < 1 or self.width % (2 * self.heads):
            raise RecipeError(
                f"shape has width {self.width}, layers {self.layers}, heads {self.heads}, mlp {self.mlp}; all must be "
                "1 or more and width a multiple of 2 x heads (rotary embedding); try 128, 4, 4, 344"
            )


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How long, how fast, and on what share of masks."""

    gen_length: int = 16  # response length L in tokens; shorter demonstrations are filled up with end-of-text
    steps: int = 1750
    batch_size: int = 64  # demonstrations a step
    muon_learning_rate: float = 7.5e-3  # Muon's learning rate, for the matrices of the blocks
    adamw_learning_rate: float = 1.5e-3  # AdamW's, for embeddings, head and norms
    warmup_ratio: float = 0.05  # share of the steps in which the rates rise from 0; afterwards they fall as a cosine
    t_min: float = 0.02  # least share of masks: 1/t is unbounded below it (eq. 3)
    autocast: bool = False  # float32 is the faster one at these sizes on a CPU without bfloat16 matrix units
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.gen_length < 1:
            raise RecipeError("pretraining needs steps, batch and length of 1 or more")
        if not 0 < self.t_min < 1:
            raise RecipeError(f"pretraining.t_min is {self.t_min}; it must lie in (0, 1); try 0.02")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """One pre-training of a tiny base."""

    name: str  # the name it is bundled under, e.g. tiny/sudoku
    task: Sudoku | Countdown
    shape: Shape = field(default_factory=Shape)
    pretraining: Pretraining = field(default_factory=Pretraining)


def new_policy(shape: Shape, demonstrator: Demonstrator, seed: int, autocast: bool) -> MaskedPolicy:
    """A randomly initialised LLaDA of the given sizes with the task's own tokenizer."""
    tokenizer = build_tokenizer(demonstrator.vocabulary.words, demonstrator.vocabulary.pattern)
    published = write_llada_config(
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        mlp=shape.mlp,
        vocabulary=len(tokenizer),
        longest=256,
        mask=tokenizer.mask_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
    )
    family = family_of(published)
    with torch.random.fork_rng():  # transformers initialises from the global generator; put it back after
        torch.random.manual_seed(seed)
        config = family.read_config(published)
        config._attn_implementation = "eager"  # at these sizes twice as fast as torch's fused attention on a CPU
        return MaskedPolicy(family.model_class(config), tokenizer, published, autocast)


def masked_loss(
    policy: MaskedPolicy,
    prompt: Int[Tensor, "B P"],
    prompt_mask: torch.Tensor,
    response: Int[Tensor, "B L"],
    t: Float[Tensor, " B"],
    noise: Float[Tensor, "B L"],
) -> Float[Tensor, ""]:
    """Eq. 3 as a loss, in nats per response token: mean over rows of -(1/t) sum_hidden log p(x0_i | x_t) / L."""
    hidden = noise < t[:, None]
    tokens = torch.cat([prompt, response.masked_fill(hidden, policy.mask_id)], 1)
    attend = torch.cat([prompt_mask, torch.ones_like(hidden)], 1)
    at = torch.cat([torch.zeros_like(prompt_mask), hidden], 1)
    logits = policy.logits(tokens, None if attend.all() else attend, at)
    nats = F.cross_entropy(logits, response[hidden], reduction="none")
    weight = (1 / t)[:, None].expand_as(response)[hidden]
    return (weight * nats).sum() / response.numel()


def pretrain(
    recipe: PretrainRecipe, out: Path, progress: Callable[[int, float], None] = lambda step, loss: None
) -> MaskedPolicy:
    """Trains a base and writes it to `out` in LLaDA's layout, with its log (`pretrain.jsonl`)."""
    demonstrator, settings = recipe.task, recipe.pretraining
    demonstrations = demonstrator.demonstrations(random.Random(settings.seed))
    policy = new_policy(recipe.shape, demonstrator, settings.seed, settings.autocast)
    policy.model.requires_grad_(True)
    matrices = [p for name, p in policy.model.named_parameters() if p.ndim == 2 and ".layers." in name]
    owned = {id(p) for p in matrices}
    rest = [p for p in policy.model.parameters() if id(p) not in owned]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=settings.muon_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=settings.adamw_learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    rates = [settings.muon_learning_rate, settings.adamw_learning_rate]
    log: list[dict[str, Any]] = []
    started, smooth = time.perf_counter(), None
    for step in range(settings.steps):
        pairs = [next(demonstrations) for _ in range(settings.batch_size)]
        prompts = policy.encode([prompt for prompt, _ in pairs])
        response = _fill([policy.tokenizer(text)["input_ids"] for _, text in pairs], settings.gen_length, policy.eos_id)
        generator = make_generator(settings.seed, step, "pretrain")
        # Stratified over the batch: one t in each of `batch` equal slices of [t_min, 1].
        u = (
            torch.arange(settings.batch_size) + torch.rand(settings.batch_size, generator=generator)
        ) / settings.batch_size
        t = settings.t_min + (1 - settings.t_min) * u
        noise = torch.rand(response.shape, generator=generator)
        loss = masked_loss(policy, prompts.prompt_ids, prompts.prompt_mask, response, t, noise)
        scale = learning_rate_scale(step, settings.steps, settings.warmup_ratio)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        value = loss.item()
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        progress(step + 1, smooth)
        if (step + 1) % 50 == 0 or step + 1 == settings.steps:
            seconds = round(time.perf_counter() - started, 1)
            log.append({"step": step + 1, "nats_per_token": round(smooth, 5), "seconds": seconds})

    def write(place: Path) -> None:
        save_policy(policy, place, recipe.name)
        (place / "pretrain.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(recipe))), sort_keys=False))
        (place / "pretrain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))

    replace_folder(out, write)
    return policy


def learning_rate_scale(step: int, steps: int, warmup: float) -> float:
    """Rises from 0 over the first `warmup` share of the steps, then falls to 0 as a cosine."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _fill(rows: list[list[int]], length: int, eos: int) -> Int[Tensor, "B L"]:
    too_long = max(map(len, rows))
    if too_long > length:
        raise RecipeError(f"a demonstration has {too_long} tokens; pretraining.gen_length is {length}; raise it")
    return torch.tensor([row + [eos] * (length - len(row)) for row in rows])
