"""Building the static dataset: from the model's own responses (section 5.2) or from texts (table 4)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stipule.errors import RecipeError
from stipule.models.policy import MaskedPolicy
from stipule.rollouts.anchors import AnchorStore, eligible_tokens
from stipule.rollouts.denoise import BlockDenoiser
from stipule.rollouts.grading import grade
from stipule.streams import stream
from stipule.tasks.problem import Problem, Task
from stipule.types import Responses

# Seconds between two writes of a store that is being built: what an interruption may cost.
SAVE_SECONDS = 30.0


def pregenerate(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    sampler: BlockDenoiser,
    seed: int,
    rows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    place: Path | None = None,
    begun: AnchorStore | None = None,
) -> AnchorStore:
    """One unpruned response per problem, `rows` at once; with the model calls it cost.

    The cost is that of 1/G of an epoch of rollouts: it pays only because the store is used again in every visit.
    With `place` the store is written there, now and then and at the end; `begun` is what an earlier attempt had.
    """
    store = begun or AnchorStore(sampler.length, policy.vocabulary)
    settings = {**asdict(sampler), "task": task.name, "seed": seed, "rows": rows}
    if begun is not None and begun.made_by != settings:
        changed = [k for k in settings if begun.made_by.get(k) != settings[k]]
        raise RecipeError(
            f"the store at {place} was made with other settings ({', '.join(changed)}) and was left as it is; "
            "give another place with --out, or the same settings"
        )
    store.made_by = settings
    saved = time.monotonic()
    for start in range(0, len(problems), rows):
        part = problems[start : start + rows]
        if not all(p.key in store.rows for p in part):
            noise = sampler.draw(len(part), stream(seed, start, "pregenerate"))
            responses = sampler(policy, policy.encode([p.turns for p in part]), noise)
            graded = grade(task, part, policy.decode(responses.tokens))
            store.put([p.key for p in part], responses, eligible_tokens(policy, task, part, responses), graded.correct)
            store.model_calls += int(responses.forwards.sum())
            if place and time.monotonic() - saved > SAVE_SECONDS:
                store.save(place, policy, finished=False)
                saved = time.monotonic()
        progress(start + len(part), len(problems))
    if place:
        store.save(place, policy)
    return store


def from_texts(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    texts: Mapping[str, str],
    length: int,
    rows: int,
    place: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AnchorStore:
    """The static dataset of given texts by problem key, aligned from the response's first position (table 4).

    A text that is longer than the response is cut; what a shorter one leaves stays masked. Confidence is what the
    model gives each eligible token with all eligible ones hidden: one model call a problem.
    """
    store = AnchorStore(length, policy.vocabulary)
    store.made_by = {"task": task.name, "texts": len(texts)}
    known = [p for p in problems if p.key in texts]
    for start in range(0, len(known), rows):
        part = known[start : start + rows]
        encoded = [policy.tokenizer(texts[p.key], add_special_tokens=False)["input_ids"][:length] for p in part]
        tokens = torch.tensor([ids + [policy.eos_id] * (length - len(ids)) for ids in encoded], device=policy.device)
        reach = torch.tensor([[i < len(ids) for i in range(length)] for ids in encoded], device=policy.device)
        prompts = policy.encode([p.turns for p in part])
        responses = Responses(
            prompt=prompts.tokens,
            prompt_mask=prompts.mask,
            tokens=tokens,
            free=torch.ones_like(reach),
            live=reach,
            revealed=torch.zeros_like(tokens),
            confidence=torch.zeros_like(tokens, dtype=torch.float32),
            forwards=torch.ones(len(part), dtype=torch.long, device=policy.device),
        )
        eligible = eligible_tokens(policy, task, part, responses)
        responses.confidence.copy_(confidence_of(policy, responses, eligible.to(policy.device)))
        graded = grade(task, part, [texts[p.key] for p in part])
        store.put([p.key for p in part], responses, eligible, graded.correct)
        store.model_calls += len(part)
        progress(start + len(part), len(known))
    if place:
        store.save(place, policy)
    return store


def confidence_of(policy: MaskedPolicy, responses: Responses, eligible: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Probability of each eligible token with all eligible ones hidden; 0 elsewhere."""
    hidden: Int[Tensor, "B L"] = responses.tokens.masked_fill(eligible, policy.mask_id)
    at = torch.cat([torch.zeros_like(responses.prompt_mask), eligible], 1)
    attend = torch.cat([responses.prompt_mask, torch.ones_like(eligible)], 1)
    with torch.inference_mode():
        logits = policy.logits(torch.cat([responses.prompt, hidden], 1), attend, at)
        found = logits.softmax(1).gather(1, responses.tokens[eligible][:, None])[:, 0]
    return torch.zeros(eligible.shape, device=eligible.device).masked_scatter(eligible, found.clone())


def read_texts(path: Path, problems: Sequence[Problem]) -> dict[str, str]:
    """Responses by problem key from JSON lines with `response` and `key` or `prompt`.

    Raises RecipeError, naming file and line, on a line that is malformed, says nothing of a known problem twice, or
    if no line is about any of the problems.
    """
    by_prompt = {p.prompt: p.key for p in problems}
    keys = set(by_prompt.values())
    texts: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            response = row["response"]
            key = row["key"] if "key" in row else by_prompt.get(row["prompt"])
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
