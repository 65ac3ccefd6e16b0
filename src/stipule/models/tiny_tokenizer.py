"""The tiny models' own fast tokenizer: a closed list of words, LLaDA's special tokens, a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MASK, END, START, TURN = "<|mdm_mask|>", "<|endoftext|>", "<|startoftext|>", "<|eot_id|>"
SPECIAL = (END, MASK, START, TURN)

# One user turn between two marks: the response starts right after the template, as it does for LLaDA-8B-Instruct.
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{{ '" + TURN + "' }}{% endfor %}"


def build_tokenizer(words: Sequence[str], pattern: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are exactly `words`; text is split by the regular expression `pattern`.

    Decoding is plain concatenation, so text -> tokens -> text is the identity on text made of the words.
    A word outside the list raises when it is encoded: a closed world has no unknown token to hide behind.
    """
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        mask_token=MASK,
        extra_special_tokens=[TURN],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
