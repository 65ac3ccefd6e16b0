"""Builds the anchor store: from the model's own responses (section 5.2) or from texts (table 4)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.errors import RecipeError
from stipule.models.block_copies import computed_length
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.sharding import is_sharded
from stipule.object_import import settings_of
from stipule.rng import make_generator
from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.prompt_lengths import check_prompt_lengths
from stipule.rollouts.reward_batch import compute_rewards, grade_responses, token_lists
from stipule.rollouts.sampler import SemiAutoregressiveSampler
from stipule.tasks.problem import Problem, Task
from stipule.types import Rollouts

# Seconds between two writes of a store that is being built. An interruption costs at most this.
SAVE_SECONDS = 30.0

# What a store was made with if it does not say so: an earlier version had no choice.
EARLIER_CHOICES: Mapping[str, Any] = {"confidence": "when_unmasked", "protect": "answer", "retokenize": False}


@runtime_checkable
class ProcessGroup(Protocol):
    """The processes that build a store together; training/distributed.py has the one of several processes."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    def all_gather_object(self, local: Sequence[Any]) -> list[Any]: ...


@dataclass(frozen=True)
class SingleProcess:
    """The group of one process."""

    rank: int = 0
    world_size: int = 1

    def all_gather_object(self, local: Sequence[Any]) -> list[Any]:
        return list(local)


SINGLE_PROCESS = SingleProcess()


@dataclass(frozen=True)
class StoredBatch:
    """Consecutive problems with their responses, on the CPU."""

    stop: int  # number of problems up to the last of the batch
    keys: Sequence[str]
    rollouts: Rollouts
    eligible: Bool[Tensor, "B L"]
    correct: Bool[Tensor, " B"]


def pregenerate(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: SemiAutoregressiveSampler,
    seed: int,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    path: Path | None = None,
    unfinished_store: AnchorStore | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
    confidence: Literal["when_unmasked", "fully_masked"] = "when_unmasked",
    protect: Literal["answer", "answer_content"] = "answer",
    retokenize: bool = False,
) -> AnchorStore:
    """Samples one unpruned response per problem, and counts the forward passes.

    With `confidence` fully_masked, one more forward pass gives each token's probability with the whole text masked. As
    in the authors' code, it reads as many masks as the text has tokens, without its end. With `retokenize` the stored
    tokens are those of the response's text, encoded again; other confidences than fully_masked are 0 then. Sampling
    costs 1/G of an epoch of rollouts. It pays because the store is used in every epoch. With `path` the store is
    written there, regularly and at the end; `unfinished_store` is what an interrupted attempt has left. The batches are
    divided over the processes; each of them gets the whole store, and it does not depend on their number.
    """
    check_prompt_lengths(policy, problems, sampler.gen_length)
    store = unfinished_store or AnchorStore(sampler.gen_length, policy.vocab_size)
    choices = {"confidence": confidence, "protect": protect, "retokenize": retokenize}
    settings = {**settings_of(sampler), "task": task.name, "seed": seed, "batch_size": batch_size, **choices}
    earlier = settings if unfinished_store is None else {**EARLIER_CHOICES, **unfinished_store.settings}
    if changed := [k for k in settings if earlier.get(k) != settings[k]]:
        raise RecipeError(
            f"the store at {path} was made with other settings ({', '.join(changed)}) and was left as it is; "
            "give another path with --out, or the same settings"
        )
    store.settings = settings

    def sample(start: int) -> StoredBatch:
        batch = problems[start : start + batch_size]
        noise = sampler.sample_noise(len(batch), make_generator(seed, start, "pregenerate"))
        rollouts = sampler(policy, policy.encode([p.messages for p in batch]), noise)
        if retokenize:
            texts = dict(zip((p.key for p in batch), policy.decode(rollouts.completion_ids), strict=True))
            rollouts = replace(_rollouts_of_texts(policy, batch, texts, sampler.gen_length), nfe=rollouts.nfe)
        if confidence == "fully_masked":
            text = rollouts.completion_mask & (rollouts.completion_ids != policy.eos_id)
            probability = token_confidence(policy, rollouts, text, attended=text)
            rollouts = _one_more_pass(policy, replace(rollouts, confidence=probability))
        rewards = grade_responses(policy, task, batch, rollouts)
        eligible = eligible_tokens(policy, task, batch, rollouts, protect)
        return _stored_batch(batch, start, rollouts, eligible, rewards.correct)

    starts = [
        start
        for start in range(0, len(problems), batch_size)
        if not all(p.key in store.row_of_key for p in problems[start : start + batch_size])
    ]
    _build(store, policy, sample, starts, len(problems), progress, path, processes)
    return store


def store_from_texts(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    texts: Mapping[str, str],
    gen_length: int,
    batch_size: int,
    path: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    processes: ProcessGroup = SINGLE_PROCESS,
    protect: Literal["answer", "answer_content"] = "answer",
) -> AnchorStore:
    """The anchor store of given texts by problem key, aligned at the response's first position (table 4).

    A text that is longer than the response is cut; positions after a shorter text stay masked. The confidence of each
    eligible token is its probability with all eligible tokens masked: one forward pass per problem.
    """
    check_prompt_lengths(policy, problems, gen_length)
    store = AnchorStore(gen_length, policy.vocab_size)
    store.settings = {"task": task.name, "texts": len(texts)}
    known = [p for p in problems if p.key in texts]

    def score(start: int) -> StoredBatch:
        batch = known[start : start + batch_size]
        rollouts = _rollouts_of_texts(policy, batch, texts, gen_length)
        rewards = compute_rewards(task, batch, [texts[p.key] for p in batch], token_lists(rollouts))
        eligible = eligible_tokens(policy, task, batch, rollouts, protect)
        rollouts.confidence.copy_(token_confidence(policy, rollouts, eligible.to(policy.device)))
        return _stored_batch(batch, start, _one_more_pass(policy, rollouts), eligible, rewards.correct)

    _build(store, policy, score, range(0, len(known), batch_size), len(known), progress, path, processes)
    return store


def _stored_batch(
    batch: Sequence[Problem], start: int, rollouts: Rollouts, eligible: Tensor, correct: Tensor
) -> StoredBatch:
    return StoredBatch(start + len(batch), [p.key for p in batch], rollouts.map(Tensor.cpu), eligible.cpu(), correct)


def _build(
    store: AnchorStore,
    policy: MaskedPolicy,
    compute: Callable[[int], StoredBatch],
    starts: Sequence[int],
    total: int,
    progress: Callable[[int, int], None],
    path: Path | None,
    processes: ProcessGroup,
) -> None:
    """Fills the store, one batch per process at a time. Only the first process writes.

    With sharded weights every process must make the same forward passes: one without a batch repeats the last batch.
    """
    saved_at = time.monotonic()
    progress(starts[0] if starts else total, total)
    for first in range(0, len(starts), processes.world_size):
        index = first + processes.rank
        local = compute(starts[min(index, len(starts) - 1)]) if index < len(starts) or is_sharded(policy) else None
        batches = processes.all_gather_object([local] if local is not None and index < len(starts) else [])
        for batch in batches:
            store.put(batch.keys, batch.rollouts, batch.eligible, batch.correct)
            store.model_calls += int(batch.rollouts.nfe.sum())
            store.computed_tokens += int(batch.rollouts.nfe_tokens.sum())
        if path and processes.rank == 0 and time.monotonic() - saved_at > SAVE_SECONDS:
            store.save(path, policy, finished=False)
            saved_at = time.monotonic()
        progress(batches[-1].stop, total)
    if path and processes.rank == 0:
        store.save(path, policy)


def _rollouts_of_texts(
    policy: MaskedPolicy, problems: Sequence[Problem], texts: Mapping[str, str], gen_length: int
) -> Rollouts:
    """The texts as if the policy had sampled them."""
    tokenizer, device = policy.tokenizer, policy.device
    encoded = [tokenizer(texts[p.key], add_special_tokens=False)["input_ids"][:gen_length] for p in problems]
    padded = [token_ids + [policy.eos_id] * (gen_length - len(token_ids)) for token_ids in encoded]
    completion_ids = torch.tensor(padded, device=device)
    completion_mask = torch.tensor([[i < len(ids) for i in range(gen_length)] for ids in encoded], device=device)
    prompts = policy.encode([p.messages for p in problems])
    return Rollouts(
        prompt_ids=prompts.prompt_ids,
        prompt_mask=prompts.prompt_mask,
        completion_ids=completion_ids,
        sampled_mask=torch.ones_like(completion_mask),
        completion_mask=completion_mask,
        unmask_step=torch.zeros_like(completion_ids),
        confidence=torch.zeros_like(completion_ids, dtype=torch.float32),
        nfe=torch.zeros(len(problems), dtype=torch.long, device=device),
        nfe_tokens=torch.zeros(len(problems), dtype=torch.long, device=device),
    )


def _one_more_pass(policy: MaskedPolicy, rollouts: Rollouts) -> Rollouts:
    """Counts one forward pass over prompt and response in every row."""
    prompt_lengths, length = rollouts.prompt_mask.sum(1).tolist(), rollouts.completion_ids.shape[1]
    tokens = [computed_length(prompt, length, policy.block_length) for prompt in prompt_lengths]
    nfe_tokens = rollouts.nfe_tokens + torch.tensor(tokens, device=rollouts.nfe_tokens.device)
    return replace(rollouts, nfe=rollouts.nfe + 1, nfe_tokens=nfe_tokens)


def token_confidence(
    policy: MaskedPolicy,
    rollouts: Rollouts,
    eligible: Bool[Tensor, "B L"],
    attended: Bool[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B L"]:
    """Probability of each eligible token with all eligible tokens masked; 0 elsewhere.

    `attended`: the positions of the response that the forward pass reads; None: all. In a block diffusion model those
    of its own block are masked, after the tokens of earlier blocks.
    """
    masked_ids = rollouts.completion_ids.masked_fill(eligible, policy.mask_id)
    attention_mask = torch.cat([rollouts.prompt_mask, torch.ones_like(eligible) if attended is None else attended], 1)
    with torch.no_grad() if is_sharded(policy) else torch.inference_mode():  # as the sampler
        if policy.block_length is None:
            position_mask = torch.cat([torch.zeros_like(rollouts.prompt_mask), eligible], 1)
            logits = policy.logits(torch.cat([rollouts.prompt_ids, masked_ids], 1), attention_mask, position_mask)
        else:
            clean_ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids], 1)
            states = policy.block_hidden_states(clean_ids, masked_ids[:, None], attention_mask, eligible[:, None])
            logits = policy.lm_head(states)
        probability = logits.softmax(1).gather(1, rollouts.completion_ids[eligible][:, None])[:, 0]
    return torch.zeros(eligible.shape, device=eligible.device).masked_scatter(eligible, probability.clone())


def read_texts(path: Path, problems: Sequence[Problem]) -> dict[str, str]:
    """Responses by problem key from JSON lines with `response` and `key` or `prompt`.

    Raises RecipeError, naming file and line, for a line that is malformed or a second response to a problem, or if no
    line belongs to any of the problems.
    """
    key_of_prompt = {p.prompt: p.key for p in problems}
    keys = set(key_of_prompt.values())
    texts: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            response = row["response"]
            key = row["key"] if "key" in row else key_of_prompt.get(row["prompt"])
        except (ValueError, KeyError, TypeError) as cause:
            raise RecipeError(
                f"{path}, line {number} is not a JSON object with response and key or prompt: {cause!r}"
            ) from cause
        if not isinstance(response, str):
            raise RecipeError(f"{path}, line {number} has a response that is no text: {response!r}")
        if key in texts:
            raise RecipeError(f"{path}, line {number} is a second response to {key!r}; keep one of them")
        if key in keys:
            texts[key] = response
    if not texts:
        raise RecipeError(f"{path} has no response to any of the task's {len(problems)} training problems")
    return texts
