"""Dummy inputs of a plan: a model with random weights of the right shapes, and responses of full length."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from stipule.models.adapter_tf32 import allow_tf32_in_adapters
from stipule.models.adapters import new_adapter
from stipule.models.autocast import prepare_autocast
from stipule.models.families import family_of
from stipule.models.loading import ModelConfig
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.tiny_tokenizer import build_tokenizer
from stipule.rng import generator_devices, make_generator
from stipule.rollouts.block_grid import block_grid, count_masks
from stipule.rollouts.pruning import Anchors
from stipule.rollouts.schedule import num_blocks, unmask_schedule
from stipule.training.settings import Recipe
from stipule.types import MaskSamples, Prompts, Rollouts

EOS_ID, MASK_ID = 0, 1  # ids of the dummy model; they may differ from the published ones


def dummy_policy(
    config_json: Mapping[str, Any], model: ModelConfig, device: torch.device | str, layers: int | None = None
) -> MaskedPolicy:
    """A policy with random weights, with the dtype, attention, LoRA and checkpointing of the recipe's `model`.

    `layers` reduces the number of layers. The device `meta` gives shapes without memory.
    """
    family = family_of(config_json)
    config = family.read_config(config_json)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    dtype = getattr(torch, model.dtype)
    with torch.device(device), torch.random.fork_rng(generator_devices(device)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        network: Any = family.model_class._from_config(config, dtype=dtype, attn_implementation=model.attention)
        network.name_or_path = model.path  # without it peft warns
        if model.gradient_checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if model.lora:
            network = new_adapter(network, family, model.lora, model.path, 0)
            if model.adapters_use_tf32:
                allow_tf32_in_adapters(network)
    ids = {"mask_token_id": MASK_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID}
    policy = MaskedPolicy(network, _tokenizer(config.vocab_size), {**config_json, **ids}, model.autocast)
    if model.lora is None:
        policy.model.requires_grad_(True)
    if model.autocast:
        prepare_autocast(policy)
    return policy


def full_length_rollouts(
    recipe: Recipe, prompt_length: int, padded: bool, device: torch.device | str = "cpu", anchors: int = 0
) -> Rollouts:
    """The rollouts of one step at their longest: without end-of-text, with this many anchors in each row.

    `padded`: every second prompt is one token shorter.
    """
    rows = recipe.training.prompts_per_step * recipe.training.num_generations
    length = recipe.sampler.gen_length
    prompt_ids = torch.full((rows, prompt_length), 2)
    prompt_mask = torch.ones_like(prompt_ids, dtype=torch.bool)
    if padded:
        prompt_mask[::2, 0] = False
    fixed_mask = even_anchors(recipe, rows, anchors).fixed_mask
    return Rollouts(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=torch.full((rows, length), 2),
        sampled_mask=~fixed_mask,
        completion_mask=torch.ones(rows, length, dtype=torch.bool),
        unmask_step=_unmask_steps(recipe, fixed_mask, prompt_length),
        confidence=torch.ones(rows, length),
        nfe=torch.ones(rows, dtype=torch.long),
        nfe_tokens=torch.ones(rows, dtype=torch.long),
    ).map(lambda tensor: tensor.to(device))


def even_anchors(recipe: Recipe, rows: int, count: int) -> Anchors:
    """This many anchors in each row, spread evenly, as in `training.cost.schedule_of`."""
    length = recipe.sampler.gen_length
    fixed_mask = torch.zeros(rows, length, dtype=torch.bool)
    fixed_mask[:, [length * i // count for i in range(count)]] = True
    return Anchors(torch.full((rows, length), 2), fixed_mask)


def mask_samples_of_step(recipe: Recipe, rollouts: Rollouts) -> list[MaskSamples]:
    """The mask samples of each inner update of a step, from the recipe's estimator."""
    return recipe.estimator.sample_masks(
        rollouts, recipe.training.num_iterations, make_generator(recipe.training.seed, 0, "views")
    )


def prompts_of(rollouts: Rollouts) -> Prompts:
    """The prompts of these rollouts."""
    return Prompts(rollouts.prompt_ids, rollouts.prompt_mask)


def trainable_parameters(policy: MaskedPolicy) -> list[nn.Parameter]:
    """The parameters that an update changes."""
    return list(policy.trainable_parameters().values())


def _unmask_steps(recipe: Recipe, fixed_mask: torch.Tensor, prompt_length: int) -> torch.Tensor:
    """The forward pass that unmasks each token, if blocks are filled from left to right."""
    sampler = recipe.sampler
    grid = sampler.gen_length, sampler.block_length, sampler.block_schedule == "separate"
    block_index = block_grid(torch.ones(1, prompt_length, dtype=torch.bool), *grid)
    masks = tuple(count_masks(~fixed_mask[:1], block_index, num_blocks(*grid))[0].tolist())
    num_transfer_tokens = unmask_schedule(
        masks,
        sampler.gen_length,
        sampler.steps,
        sampler.block_length,
        recipe.pruning.temporal.planned_cutoff,
        sampler.block_schedule,
    ).num_transfer_tokens
    steps = torch.arange(len(num_transfer_tokens))
    row = torch.full((sampler.gen_length,), -1)
    row[~fixed_mask[0]] = torch.repeat_interleave(steps, torch.tensor(num_transfer_tokens))
    return row.expand(len(fixed_mask), -1).clone()


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    return build_tokenizer([f"w{i}" for i in range(vocab_size - 4)], r"w\d+")
