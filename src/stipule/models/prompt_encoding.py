"""From a message or a conversation to token ids."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from stipule.errors import CheckpointError, StipuleError
from stipule.models.policy import Messages


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[list[int]]:
    """The token ids of each prompt.

    Raises CheckpointError for a conversation if the tokenizer has no chat template, StipuleError for text that the
    tokenizer has no tokens for.
    """
    try:
        return [encode_messages(tokenizer, prompt) for prompt in prompts]
    except CheckpointError:
        raise
    except Exception as cause:  # a tokenizer without a token for unknown words raises a plain Exception
        raise StipuleError(
            f"the prompt {str(prompts[0])[:60]!r} ... cannot be encoded by the model's tokenizer: {cause}; a tiny base "
            "has only the words of its own task"
        ) from cause


def encode_messages(tokenizer: PreTrainedTokenizerBase, prompt: Messages) -> list[int]:
    """Applies the chat template if there is one. A last message of the assistant is the start of its response.

    Raises CheckpointError for a conversation if the tokenizer has no chat template.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    # The start of the response comes after the template's own header.
    prefill = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
    prefill_ids = tokenizer(prefill, add_special_tokens=False)["input_ids"] if prefill else []
    if tokenizer.chat_template is None:
        if len(messages) > 1 or not messages:
            raise CheckpointError(
                "the prompts are conversations, but the tokenizer has no chat template; use prompts that are strings, "
                "or a tokenizer with a template"
            )
        return [*tokenizer(messages[0]["content"])["input_ids"], *prefill_ids]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return [*encoded, *prefill_ids]
