"""The fast tokenizer of the tiny models: a fixed list of words, LLaDA's special tokens, a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MASK, EOS, BOS, EOT = "<|mdm_mask|>", "<|endoftext|>", "<|startoftext|>", "<|eot_id|>"
SPECIAL_TOKENS = (EOS, MASK, BOS, EOT)

# The response starts right after the end-of-turn token of the user message, as for LLaDA-8B-Instruct.
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{{ '" + EOT + "' }}{% endfor %}"
# For a tiny block model: nothing but the message, so that the blocks of a puzzle are its rows.
BARE_CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def build_tokenizer(words: Sequence[str], pattern: str, chat_template: str = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are exactly `words`; text is split by the regular expression `pattern`.

    Decoding concatenates tokens, so encoding and decoding a text made of the words gives the same text. Encoding a word
    that is not in the list raises an error: there is no token for unknown words.
    """
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        mask_token=MASK,
        extra_special_tokens=[EOT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast_tokenizer.chat_template = chat_template
    return fast_tokenizer
