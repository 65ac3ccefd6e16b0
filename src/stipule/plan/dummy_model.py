"""Stand-ins for what only a real run has: random weights of the right shape, and responses of full length."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from stipule.models.adapters import new_adapter
from stipule.models.autocast import prepare_autocast
from stipule.models.families import family_of
from stipule.models.loading import ModelConfig
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.tiny_tokenizer import build_tokenizer
from stipule.rng import make_generator
from stipule.rollouts.pruning import Anchors
from stipule.rollouts.schedule import num_anchors, unmask_schedule
from stipule.training.settings import Recipe
from stipule.types import MaskSamples, Prompts, Rollouts

END, MASK = 0, 1  # the stand-in's ids, whatever the published ones are


def dummy_policy(
    published: Mapping[str, Any], choice: ModelConfig, device: torch.device | str, layers: int | None = None
) -> MaskedPolicy:
    """A policy with random weights as the recipe would load it: dtype, attention, LoRA, checkpointing.

    `layers` makes it shallower. The device `meta` gives shapes without memory.
    """
    family = family_of(published)
    config = family.read_config(published)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    dtype = getattr(torch, choice.dtype)
    with torch.device(device), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        network: Any = family.model_class._from_config(config, dtype=dtype, attn_implementation=choice.attention)
        network.name_or_path = choice.path  # peft warns of a network without one
        if choice.gradient_checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if choice.lora:
            network = new_adapter(network, family, choice.lora, choice.path, 0)
    ids = {"mask_token_id": MASK, "eos_token_id": END, "pad_token_id": END}
    policy = MaskedPolicy(network, _tokenizer(config.vocab_size), {**published, **ids}, choice.autocast)
    if choice.lora is None:
        policy.model.requires_grad_(True)
    if choice.autocast:
        prepare_autocast(policy)
    return policy


def full_length_rollouts(recipe: Recipe, prompt: int, padded: bool, device: torch.device | str = "cpu") -> Rollouts:
    """A step's responses as they are at their longest: no end-of-text, anchors where the recipe wants some."""
    rows = recipe.training.prompts_per_step * recipe.training.num_generations
    length = recipe.sampler.gen_length
    asked = torch.full((rows, prompt), 2)
    real = torch.ones_like(asked, dtype=torch.bool)
    if padded:
        real[::2, 0] = False
    fixed = anchors_of(recipe, rows).fixed_mask
    return Rollouts(
        prompt_ids=asked,
        prompt_mask=real,
        completion_ids=torch.full((rows, length), 2),
        sampled_mask=~fixed,
        completion_mask=torch.ones(rows, length, dtype=torch.bool),
        unmask_step=_revealed(recipe, fixed),
        confidence=torch.ones(rows, length),
        nfe=torch.ones(rows, dtype=torch.long),
    ).map(lambda tensor: tensor.to(device))


def anchors_of(recipe: Recipe, rows: int) -> Anchors:
    """The fewest anchors that the recipe may place, spread evenly, as `calls_per_response` counts them."""
    length = recipe.sampler.gen_length
    count = num_anchors(recipe.pruning.spatial.min_ratio, length)
    fixed = torch.zeros(rows, length, dtype=torch.bool)
    fixed[:, [length * i // count for i in range(count)]] = True
    return Anchors(torch.full((rows, length), 2), fixed)


def mask_samples_of_step(recipe: Recipe, responses: Rollouts) -> list[MaskSamples]:
    """The views of a step's inner updates, from the recipe's own estimator."""
    return recipe.estimator.sample_masks(
        responses, recipe.training.num_iterations, make_generator(recipe.training.seed, 0, "views")
    )


def prompts_of(responses: Rollouts) -> Prompts:
    """The prompts that these responses answer."""
    return Prompts(responses.prompt_ids, responses.prompt_mask)


def trainable_parameters(policy: MaskedPolicy) -> list[nn.Parameter]:
    """The parameters that an update changes."""
    return list(policy.trainable_parameters().values())


def _revealed(recipe: Recipe, fixed: torch.Tensor) -> torch.Tensor:
    """The call that commits each token if a block is filled from left to right."""
    sampler = recipe.sampler
    masks = tuple((~fixed[0]).unflatten(0, (-1, sampler.block_length)).sum(1).tolist())
    quotas = unmask_schedule(
        masks, sampler.gen_length, sampler.steps, sampler.block_length, *recipe.pruning.temporal.planned_cutoff
    ).num_transfer_tokens
    row = torch.full((sampler.gen_length,), -1)
    row[~fixed[0]] = torch.repeat_interleave(torch.arange(len(quotas)), torch.tensor(quotas))
    return row.expand(len(fixed), -1).clone()


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    return build_tokenizer([f"w{i}" for i in range(vocabulary - 4)], r"w\d+")
