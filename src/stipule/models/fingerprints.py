"""Short hashes of weights and tokenizers, which say whether two files belong together."""

from __future__ import annotations

import hashlib
import json

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def weights_fingerprint(network: PreTrainedModel) -> str:
    """From names, shapes and some numbers of each tensor. Adapters change none of these."""
    digest = hashlib.sha256()
    for name, parameter in network.named_parameters():
        # 4-bit matrices are packed anew by the first forward pass on some processors, and are left out.
        if "lora_" not in name and parameter.is_floating_point():
            flat = parameter.detach().flatten()
            numbers = flat[:: max(1, flat.numel() // 64)].float().cpu()
            digest.update(f"{name.replace('.base_layer', '')} {tuple(parameter.shape)}".encode())
            digest.update(numbers.numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """From the vocabulary and the chat template."""
    content = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
