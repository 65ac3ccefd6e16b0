"""Refuses prompts that, with their response, are longer than the sequences the model was made for."""

from __future__ import annotations

from collections.abc import Sequence

from stipule.errors import RecipeError
from stipule.models.masked_policy import MaskedPolicy
from stipule.models.policy import Messages, Policy
from stipule.tasks.problem import Problem


def check_sequence_length(policy: Policy, prompt_length: int, gen_length: int, prompt: str = "a prompt") -> None:
    """Raises RecipeError, with both lengths, if the model has too few positions. `prompt` names the prompt."""
    if policy.max_length is None or prompt_length + gen_length <= policy.max_length:
        return
    remedy = (
        f"set sampler.gen_length to at most {policy.max_length - prompt_length}, or shorten the prompt"
        if prompt_length < policy.max_length
        else "shorten the prompt"
    )
    raise RecipeError(
        f"{prompt} has {prompt_length} tokens and sampler.gen_length is {gen_length}, together "
        f"{prompt_length + gen_length}; the model has {policy.max_length} positions; {remedy}"
    )


def check_prompt_lengths(policy: MaskedPolicy, problems: Sequence[Problem], gen_length: int) -> None:
    """Raises RecipeError if a problem's prompt is too long, before any is sampled.

    A prompt with few bytes is not encoded: a token is at least one byte of the text, and what the template adds to each
    message is at most what the first prompt has.
    """
    if policy.max_length is None or not problems:
        return
    template = _num_tokens(policy, problems[0].messages)
    for problem in problems:
        texts = [problem.messages] if isinstance(problem.messages, str) else [m["content"] for m in problem.messages]
        if sum(len(text.encode()) + template for text in texts) + gen_length > policy.max_length:
            length = _num_tokens(policy, problem.messages)
            check_sequence_length(policy, length, gen_length, f"the prompt of problem {problem.key!r}")


def _num_tokens(policy: MaskedPolicy, messages: Messages) -> int:
    return policy.encode([messages]).prompt_ids.shape[1]
