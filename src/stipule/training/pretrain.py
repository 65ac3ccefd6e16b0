"""Pre-trains a tiny base from scratch: the ELBO of eq. 3 as a loss, on a task's demonstrations."""

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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.atomic_io import replace_folder
from stipule.errors import RecipeError
from stipule.models.families import family_of, write_llada_config, write_sdar_config
from stipule.models.loading import save_policy
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.tiny_tokenizer import BARE_CHAT_TEMPLATE, CHAT_TEMPLATE, build_tokenizer
from stipule.rng import make_generator
from stipule.rollouts.block_grid import block_grid
from stipule.tasks.countdown import Countdown
from stipule.tasks.problem import Demonstrator
from stipule.tasks.sudoku import Sudoku
from stipule.training.muon import Muon
from stipule.types import Prompts


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the network."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 344
    block_length: int | None = None  # tokens of a block: a block diffusion model in SDAR's layout; None: a LLaDA

    def __post_init__(self) -> None:
        if self.block_length is not None and self.block_length < 1:
            raise RecipeError(
                f"shape.block_length is {self.block_length}; it is the number of tokens of a block and must be 1 or "
                "more; try 4, or leave it out for a model that attends to the whole text"
            )
        if min(self.width, self.layers, self.heads, self.mlp) < 1 or self.width % (2 * self.heads):
            raise RecipeError(
                f"shape has width {self.width}, layers {self.layers}, heads {self.heads}, mlp {self.mlp}; all must be "
                "1 or more, and width must be a multiple of 2 x heads (rotary embedding); try 128, 4, 4, 344"
            )


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Number of steps, batch size, learning rates and mask ratios."""

    gen_length: int = 16  # response length L in tokens; shorter demonstrations are padded with end-of-text
    steps: int = 1750
    batch_size: int = 64  # demonstrations per step
    muon_learning_rate: float = 7.5e-3  # of Muon, for the matrices of the transformer layers
    adamw_learning_rate: float = 1.5e-3  # of AdamW, for embeddings, LM head and norms
    warmup_ratio: float = 0.05  # fraction of the steps in which learning rates rise from 0; then they fall as a cosine
    # Smallest mask ratio; the weight 1/t of eq. 3 has no bound as t goes to 0. A block model masks an exact number of
    # each block's tokens instead, at least one.
    t_min: float = 0.02
    autocast: bool = False  # at these sizes float32 is faster on a CPU without bfloat16 matrix units
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gen_length", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"pretraining.{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 < self.t_min < 1:
            raise RecipeError(f"pretraining.t_min is {self.t_min}; it must lie in (0, 1); try 0.02")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """One pre-training run of a tiny base."""

    name: str  # the name of the bundled model, e.g. tiny/sudoku
    task: Sudoku | Countdown
    shape: Shape = field(default_factory=Shape)
    pretraining: Pretraining = field(default_factory=Pretraining)


def new_policy(shape: Shape, demonstrator: Demonstrator, seed: int, autocast: bool) -> MaskedPolicy:
    """A randomly initialised LLaDA or SDAR of the given sizes with a tokenizer for the task's vocabulary."""
    words, pattern = demonstrator.vocabulary.words, demonstrator.vocabulary.pattern
    tokenizer = build_tokenizer(words, pattern, CHAT_TEMPLATE if shape.block_length is None else BARE_CHAT_TEMPLATE)
    sizes = {
        "width": shape.width,
        "layers": shape.layers,
        "heads": shape.heads,
        "mlp": shape.mlp,
        "vocabulary": len(tokenizer),
        "longest": 256,
        "mask": tokenizer.mask_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
    }
    if shape.block_length is None:
        config_json = write_llada_config(**sizes)
    else:
        config_json = write_sdar_config(**sizes, block_length=shape.block_length)
    family = family_of(config_json)
    with torch.random.fork_rng([]):  # transformers initialises from the global generator
        torch.random.manual_seed(seed)
        config = family.read_config(config_json)
        config._attn_implementation = "eager"  # on a CPU, twice as fast as fused attention at these sizes
        return MaskedPolicy(family.model_class(config), tokenizer, config_json, autocast)


def masked_loss(
    policy: MaskedPolicy,
    prompts: Prompts,
    completion_ids: Int[Tensor, "B L"],
    masked: Bool[Tensor, "B L"],
    loss_weights: Float[Tensor, "B L"],
) -> Float[Tensor, ""]:
    """Eq. 3 as a loss, in nats per response token: mean over rows of -sum_masked weight_i log p(x0_i | x_t) / L."""
    real = torch.cat([prompts.prompt_mask, torch.ones_like(masked)], 1)
    attention_mask = None if real.all() else real
    noisy_ids = completion_ids.masked_fill(masked, policy.mask_id)
    if policy.block_length is None:
        input_ids = torch.cat([prompts.prompt_ids, noisy_ids], 1)
        position_mask = torch.cat([torch.zeros_like(prompts.prompt_mask), masked], 1)
        logits = policy.logits(input_ids, attention_mask, position_mask)
    else:
        clean_ids = torch.cat([prompts.prompt_ids, completion_ids], 1)
        states = policy.block_hidden_states(clean_ids, noisy_ids[:, None], attention_mask, masked[:, None])
        logits = policy.lm_head(states)
    nats = F.cross_entropy(logits, completion_ids[masked], reduction="none")
    return (loss_weights[masked] * nats).sum() / completion_ids.numel()


def draw_masks(
    rows: int, length: int, t_min: float, generator: torch.Generator
) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Masks of eq. 2 and the weights 1/t of eq. 3: one mask ratio t per row, each token masked with probability t.

    Stratified over the batch: one t in each of `rows` equal intervals of [t_min, 1].
    """
    uniform = torch.rand(rows, generator=generator)
    t = t_min + (1 - t_min) * (torch.arange(rows) + uniform) / rows
    noise = torch.rand(rows, length, generator=generator)
    return noise < t[:, None], (1 / t)[:, None].expand(-1, length)


def draw_block_masks(
    block_index: Int[Tensor, "B L"], generator: torch.Generator
) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Masks and weights of eq. 3 for every block on its own: k of its n tokens, k uniform on 1..n, weight n/k.

    The mean over all masks of the weighted sum is the ELBO of eq. 3 of each block, as with a mask ratio t uniform on
    (0, 1] (Ou et al. 2024, theorem 2), but a block of few tokens is never without a mask. Stratified over the batch;
    the ratios of a row's blocks are spread too.
    """
    rows, length = block_index.shape
    blocks = int(block_index.max()) + 1
    stratum = (torch.arange(rows)[:, None] + torch.arange(blocks) * rows // blocks) % rows
    ratio = (stratum + torch.rand(rows, blocks, generator=generator)) / rows
    same_block = block_index[:, :, None] == block_index[:, None, :]
    size = same_block.sum(2)  # n, tokens of the block that each token is in
    count = (ratio.gather(1, block_index) * size).floor().long() + 1  # k
    noise = torch.rand(rows, length, generator=generator)
    rank = (same_block & (noise[:, None, :] < noise[:, :, None])).sum(2)  # of the token's noise within its block
    return rank < count, size / count


def pretrain(
    recipe: PretrainRecipe, out: Path, progress: Callable[[int, float], None] = lambda step, loss: None
) -> MaskedPolicy:
    """Trains a base and writes it to `out` in its family's layout, with a log of its losses (`pretrain.jsonl`)."""
    demonstrator, settings = recipe.task, recipe.pretraining
    demonstrations = demonstrator.demonstrations(random.Random(settings.seed))
    policy = new_policy(recipe.shape, demonstrator, settings.seed, settings.autocast)
    policy.model.requires_grad_(True)
    matrices = [p for name, p in policy.model.named_parameters() if p.ndim == 2 and ".layers." in name]
    matrix_ids = {id(p) for p in matrices}
    other_parameters = [p for p in policy.model.parameters() if id(p) not in matrix_ids]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=settings.muon_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(other_parameters, lr=settings.adamw_learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    learning_rates = [settings.muon_learning_rate, settings.adamw_learning_rate]
    log: list[dict[str, Any]] = []
    started, smoothed = time.perf_counter(), None
    for step in range(settings.steps):
        pairs = [next(demonstrations) for _ in range(settings.batch_size)]
        prompts = policy.encode([prompt for prompt, _ in pairs])
        token_ids = [policy.tokenizer(text)["input_ids"] for _, text in pairs]
        completion_ids = _pad_right(token_ids, settings.gen_length, policy.eos_id)
        generator = make_generator(settings.seed, step, "pretrain")
        if policy.block_length is None:
            masked, loss_weights = draw_masks(settings.batch_size, settings.gen_length, settings.t_min, generator)
        else:
            block_index = block_grid(prompts.prompt_mask, settings.gen_length, policy.block_length, True)
            masked, loss_weights = draw_block_masks(block_index, generator)
        loss = masked_loss(policy, prompts, completion_ids, masked, loss_weights)
        scale = learning_rate_scale(step, settings.steps, settings.warmup_ratio)
        for optimizer, learning_rate in zip(optimizers, learning_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * scale
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        value = loss.item()
        smoothed = value if smoothed is None else 0.98 * smoothed + 0.02 * value
        progress(step + 1, smoothed)
        if (step + 1) % 50 == 0 or step + 1 == settings.steps:
            seconds = round(time.perf_counter() - started, 1)
            log.append({"step": step + 1, "nats_per_token": round(smoothed, 5), "seconds": seconds})

    def write(folder: Path) -> None:
        save_policy(policy, folder, recipe.name)
        (folder / "pretrain.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(recipe))), sort_keys=False))
        (folder / "pretrain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))

    replace_folder(out, write)
    return policy


def learning_rate_scale(step: int, steps: int, warmup_ratio: float) -> float:
    """Rises from 0 over the first `warmup_ratio` of the steps, then falls to 0 as a cosine."""
    warmup_steps = max(1, round(steps * warmup_ratio))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def _pad_right(rows: list[list[int]], length: int, eos: int) -> Int[Tensor, "B L"]:
    longest = max(map(len, rows))
    if longest > length:
        raise RecipeError(
            f"a demonstration has {longest} tokens, but pretraining.gen_length is {length}; "
            f"try pretraining.gen_length={longest}"
        )
    return torch.tensor([row + [eos] * (length - len(row)) for row in rows])
