"""A LLaDA with random weights that accepts any text: byte-level tokens, a chat template, LLaDA's special tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stipule.models.families import family_of, write_llada_config
from stipule.models.loading import save_policy
from stipule.models.masked_policy import MaskedPolicy

SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|eot_id|>", "<|header|>", "<|end_header|>")
TEMPLATE = (
    "<|startoftext|>{% for turn in messages %}<|header|>{{ turn.role }}<|end_header|>\n\n{{ turn.content }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|end_header|>\n\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Each byte is a token, so that any text can be encoded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        mask_token=SPECIAL[2],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def text_model(folder: Path, seed: int = 0) -> Path:
    """Writes the model in LLaDA's layout."""
    tokenizer = byte_tokenizer()
    ids = {"mask": tokenizer.mask_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    published = write_llada_config(width=32, layers=2, heads=2, mlp=64, vocabulary=len(tokenizer), longest=4096, **ids)
    family = family_of(published)
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        policy = MaskedPolicy(family.model_class(family.read_config(published)), tokenizer, published)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.ndim == 2:  # so that positions differ and groups are diverse
                parameter.mul_(4)
    save_policy(policy, folder, "x")
    return folder
