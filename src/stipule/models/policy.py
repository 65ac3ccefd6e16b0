"""What a model must offer to be sampled, scored and trained, and the one implementation over transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stipule.errors import CheckpointError
from stipule.types import Prompts

Turns = str | Sequence[Mapping[str, str]]
"""A user's turn, or a conversation of `role` and `content`."""


@runtime_checkable
class Policy(Protocol):
    """A masked language model. Position i of its logits predicts token i, always."""

    mask_id: int
    eos_id: int
    pad_id: int

    @property
    def device(self) -> torch.device: ...
    @property
    def vocabulary(self) -> int: ...
    def encode(self, prompts: Sequence[Turns]) -> Prompts: ...
    def decode(self, tokens: Int[Tensor, "B L"]) -> list[str]: ...
    def states(
        self, tokens: Int[Tensor, "N T"], attend: Bool[Tensor, "N T"] | None, at: Bool[Tensor, "N T"], count: int | None
    ) -> Float[Tensor, "M D"]: ...
    def head(self, states: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]: ...
    def logits(
        self,
        tokens: Int[Tensor, "N T"],
        attend: Bool[Tensor, "N T"] | None,
        at: Bool[Tensor, "N T"],
        count: int | None = None,
    ) -> Float[Tensor, "M V"]: ...
    def reference(self) -> AbstractContextManager[None]: ...


class MaskedPolicy:
    """A transformers network with its tokenizer, as a `Policy`.

    Dropout is always off (the ratio of eq. 4 must be 1 when nothing has changed). Float32 weights run in float32, or
    in bfloat16 autocast when `autocast` is set; sampling, scoring and training go through the same switch, so that
    their log-probabilities agree.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        published: Mapping[str, Any],
        autocast: bool = False,
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.published = dict(published)  # config.json as it was found: it is written back unchanged
        self.autocast = autocast
        self.frozen: nn.Module | None = None  # the reference of full fine-tuning; LoRA needs none
        self.sharded = False  # weights are spread over ranks (models/sharding.py)
        self._pieces: dict[int, str] = {}
        self.mask_id, self.eos_id, self.pad_id = check_ids(published, tokenizer)

    @property
    def core(self) -> PreTrainedModel:
        """The transformers model, inside its LoRA wrapper if it has one."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model  # type: ignore

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def vocabulary(self) -> int:
        """V, rows of the LM head."""
        return self.core.config.vocab_size

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that an optimizer may change, by name; this rank's shards of them where they are sharded."""
        for module in self.model.modules() if self.sharded else ():
            if isinstance(module, FSDPModule):
                module.reshard()  # gathered weights stand in the shards' place until then
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def encode(self, prompts: Sequence[Turns]) -> Prompts:
        """Chat template where the tokenizer has one, then left padding to the longest.

        Raises CheckpointError for a conversation where the tokenizer has no chat template.
        """
        rows = [self._encode(prompt) for prompt in prompts]
        longest = max(map(len, rows))
        tokens = torch.tensor([[self.pad_id] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
        return Prompts(tokens.to(self.device), mask.to(self.device))

    def _encode(self, prompt: Turns) -> list[int]:
        if self.tokenizer.chat_template is None:
            if not isinstance(prompt, str):
                raise CheckpointError(
                    "the prompts are conversations, but the tokenizer has no chat template; use prompts that are "
                    "strings, or a tokenizer with a template"
                )
            return self.tokenizer(prompt)["input_ids"]
        turn = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        return self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)  # type: ignore

    def decode(self, tokens: Int[Tensor, "B L"]) -> list[str]:
        """The text of each row up to its first end-of-text, without special tokens."""
        rows = [row[: row.index(self.eos_id)] if self.eos_id in row else row for row in tokens.tolist()]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """The text of one token; empty for special tokens."""
        if token not in self._pieces:
            self._pieces[token] = self.tokenizer.decode([token], skip_special_tokens=True)
        return self._pieces[token]

    def fingerprint(self) -> str:
        """A short hash of the weights without adapters, from names, shapes and a sample of each tensor."""
        digest = hashlib.sha256()
        for name, parameter in self.core.named_parameters():
            if "lora_" not in name:
                flat = parameter.detach().flatten()
                sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
                digest.update(f"{name.replace('.base_layer', '')} {tuple(parameter.shape)}".encode())
                digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def tokenizer_fingerprint(self) -> str:
        """A short hash of the vocabulary and the chat template."""
        words = json.dumps([sorted(self.tokenizer.get_vocab().items()), self.tokenizer.chat_template])
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def states(
        self,
        tokens: Int[Tensor, "N T"],
        attend: Bool[Tensor, "N T"] | None,
        at: Bool[Tensor, "N T"],
        count: int | None = None,
    ) -> Float[Tensor, "M D"]:
        """Last hidden states of the positions asked for, row by row.

        `attend` is True on real tokens; None says that all are, and lets attention take its fast path. `count` is the
        number of True in `at`: a caller that knows it spares an accelerator one wait for the device.
        """
        # Positions count real tokens, so that padding shifts nothing.
        positions = None if attend is None else (attend.long().cumsum(-1) - 1).clamp(min=0)
        with self._precision():
            hidden = self.core.base_model(
                input_ids=tokens, attention_mask=attend, position_ids=positions, use_cache=False
            ).last_hidden_state
        flags = at.flatten()
        index = flags.nonzero() if count is None else torch.nonzero_static(flags, size=count)
        return hidden.flatten(0, 1).index_select(0, index[:, 0])

    def head(self, states: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Logits in float32 of hidden states."""
        with self._precision():
            return self.core.get_output_embeddings()(states).float()

    def logits(
        self,
        tokens: Int[Tensor, "N T"],
        attend: Bool[Tensor, "N T"] | None,
        at: Bool[Tensor, "N T"],
        count: int | None = None,
    ) -> Float[Tensor, "M V"]:
        """Logits of the M positions where `at` is True; no other position meets the LM head."""
        return self.head(self.states(tokens, attend, at, count))

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within, the policy is the model that training started from: LoRA off, or the frozen copy."""
        if hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():  # type: ignore[operator]
                yield
            return
        if self.frozen is None:
            raise CheckpointError("the policy has no reference: load it with a frozen copy (kl > 0 does so by itself)")
        current, self.model = self.model, self.frozen
        try:
            yield
        finally:
            self.model = current

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()


def check_ids(published: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Mask, end-of-text and padding id of a checkpoint; raises CheckpointError unless they can be right."""
    mask = published.get("mask_token_id", tokenizer.mask_token_id)
    eos = published.get("eos_token_id", tokenizer.eos_token_id)
    pad = published.get("pad_token_id", eos)
    size = published.get("embedding_size") or published["vocab_size"]
    for name, found in (("mask", mask), ("eos", eos), ("pad", pad)):
        if not isinstance(found, int) or not 0 <= found < min(size, len(tokenizer)):
            raise CheckpointError(
                f"the {name} token id is {found!r}; it must be an id of the tokenizer ({len(tokenizer)} tokens) and of "
                f"the embedding ({size} rows); set {name}_token_id in config.json"
            )
    if mask in (eos, pad):
        raise CheckpointError(
            f"mask id and end / padding id are both {mask}; a masked diffusion model needs a mask token of its own; "
            "set mask_token_id in config.json"
        )
    if tokenizer.eos_token_id not in (None, eos):
        raise CheckpointError(
            f"config.json says eos_token_id = {eos}, the tokenizer {tokenizer.eos_token_id}; they must agree, or "
            "responses would never end; were the two files taken from different models?"
        )
    return mask, eos, pad


def check_bidirectional(policy: MaskedPolicy) -> None:
    """Raises CheckpointError if the first position does not see the last: then attention is causal.

    Old transformers versions ignore `is_causal = False` without a word, and everything after would be quietly wrong.
    """
    tokens = torch.full((2, 4), policy.mask_id, device=policy.device)
    tokens[1, -1] = policy.eos_id
    first = torch.zeros_like(tokens, dtype=torch.bool)
    first[:, 0] = True
    with torch.inference_mode():
        one, other = policy.logits(tokens, None, first, count=2)
    if torch.equal(one, other):
        raise CheckpointError(
            "the model's attention is causal: changing the last token left the first position as it was; "
            "transformers >= 5.4 is needed; run: pip install -U 'transformers>=5.4,<6'"
        )
