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

from stipule.errors import CheckpointError, StipuleError
from stipule.models.families import family_of, output_embeddings
from stipule.models.ids import check_ids
from stipule.models.last_layer import distinct, only_at
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
    def decode(self, tokens: Int[Tensor, "B L"], cut: bool = True) -> list[str]: ...
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

    It stays in evaluation mode, so that dropout is off (the ratio of eq. 4 must be 1 when nothing has changed), except
    within `updating`. Float32 weights run in float32, or in bfloat16 autocast when `autocast` is set; sampling,
    scoring and training go through the same switch, so that their log-probabilities agree.
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
        self.base_fingerprint = ""  # of the weights that adapters are trained on; set by load_policy
        self.precision = "float32"  # how the base's weights are held, in a word
        self.family = family_of(published)
        self.sharded = False  # weights are spread over ranks (models/sharding.py)
        self._pieces: dict[int, str] = {}
        config = self.core.config
        self.first = self.family.first_position(config)
        self.mask_id, self.eos_id, self.pad_id = check_ids(published, tokenizer, self.family, config.vocab_size)

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

        Raises CheckpointError for a conversation where the tokenizer has no chat template, StipuleError for words that
        the tokenizer has no tokens for.
        """
        try:
            rows = [self._encode(prompt) for prompt in prompts]
        except CheckpointError:
            raise
        except Exception as cause:  # a tokenizer without a token for unknown words raises a plain Exception
            raise StipuleError(
                f"the prompt {str(prompts[0])[:60]!r} ... cannot be encoded by the model's tokenizer: {cause}; a tiny "
                "base knows the words of its own task alone"
            ) from cause
        return self._padded(rows)

    def encode_raw(self, texts: Sequence[str]) -> Prompts:
        """The texts as they are, without a chat template, then left padding to the longest."""
        return self._padded([self.tokenizer(text)["input_ids"] for text in texts])

    def _padded(self, rows: Sequence[list[int]]) -> Prompts:
        longest = max(map(len, rows))
        tokens = torch.tensor([[self.pad_id] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
        return Prompts(tokens.to(self.device), mask.to(self.device))

    def _encode(self, prompt: Turns) -> list[int]:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        # A last message of the assistant's is the start of its response: it follows the template's own header.
        begun = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
        start = self.tokenizer(begun, add_special_tokens=False)["input_ids"] if begun else []
        if self.tokenizer.chat_template is None:
            if len(turns) > 1 or not turns:
                raise CheckpointError(
                    "the prompts are conversations, but the tokenizer has no chat template; use prompts that are "
                    "strings, or a tokenizer with a template"
                )
            return [*self.tokenizer(turns[0]["content"])["input_ids"], *start]
        encoded = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        return [*encoded, *start]

    def decode(self, tokens: Int[Tensor, "B L"], cut: bool = True) -> list[str]:
        """The text of each row up to its first end-of-text, without special tokens; without `cut`, all of it."""
        rows = tokens.tolist()
        if cut:
            rows = [row[: row.index(self.eos_id)] if self.eos_id in row else row for row in rows]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """The text of one token; empty for special tokens."""
        if token not in self._pieces:
            self._pieces[token] = self.tokenizer.decode([token], skip_special_tokens=True)
        return self._pieces[token]

    def label(self, token: int) -> str:
        """What to show of one token: its text, or the name of a special one."""
        return self.piece(token) or str(self.tokenizer.convert_ids_to_tokens(token))

    def fingerprint(self) -> str:
        """A short hash of the weights without adapters, from names, shapes and a sample of each tensor.

        Adapters change none of these: under them it is what was found before.
        """
        if self.base_fingerprint:
            return self.base_fingerprint
        digest = hashlib.sha256()
        for name, parameter in self.core.named_parameters():
            # Matrices in 4 bits are packed anew by the first call on some processors, and are left out.
            if "lora_" not in name and parameter.is_floating_point():
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
        memory: Any = None,
    ) -> Float[Tensor, "M D"]:
        """Last hidden states of the positions asked for, row by row.

        `attend` is True on real tokens; None says that all are, and lets attention take its fast path. `count` is the
        number of True in `at`: a caller that knows it spares an accelerator one wait for the device. `memory` is handed
        every layer's keys and values (models/memory.py).
        """
        left = self.has_left(tokens, attend) if self.family.shift else None
        places = self.places(at, count, left)
        return self.run(tokens, attend, self._positions(tokens, attend), places, memory).to(at.device)

    def run(
        self, tokens: Tensor, attend: Tensor | None, positions: Tensor | None, places: Int[Tensor, " M"], memory: Any
    ) -> Float[Tensor, "M D"]:
        """The last hidden states at places of the flattened tokens."""
        remembered = {} if memory is None else {"past_key_values": memory}
        with self._precision(), self._last_layer(places, tokens.numel()):
            hidden = self.core.base_model(
                input_ids=tokens, attention_mask=attend, position_ids=positions, use_cache=False, **remembered
            ).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, places.to(hidden.device))

    def _last_layer(self, places: Int[Tensor, " M"], total: int) -> AbstractContextManager[None]:
        """Spares the last layer the places that nobody asks for, unless it will be computed again without us."""
        layer = getattr(self.core.base_model, "layers", [None])[-1]
        again = self.model.training and getattr(layer, "gradient_checkpointing", False)
        if again or not self.family.by_place or not 0 < len(places) < total:
            return nullcontext()
        return only_at(distinct(places, total), layer, self.family.by_place)

    def places(self, at: Tensor, count: int | None, left: Tensor | None) -> Int[Tensor, " M"]:
        """Where the states stand that predict the positions asked for; under a shift to their left, if anything is."""
        flags = at.flatten()
        index = (flags.nonzero() if count is None else torch.nonzero_static(flags, size=count))[:, 0]
        return index if left is None else index - left.flatten()[index].long()

    def _positions(self, tokens: Int[Tensor, "N T"], attend: Bool[Tensor, "N T"] | None) -> Int[Tensor, "N T"] | None:
        """Positions count real tokens, so that padding shifts nothing; None where the network counts so by itself."""
        if attend is None:
            if not self.first:
                return None
            attend = torch.ones_like(tokens, dtype=torch.bool)
        return (attend.long().cumsum(-1) - 1).clamp(min=0) + self.first

    def has_left(self, tokens: Int[Tensor, "N T"], attend: Bool[Tensor, "N T"] | None) -> Bool[Tensor, "N T"]:
        """Where a shifted network has a real token to the left that predicts this one; the first predicts itself."""
        left = torch.ones_like(tokens, dtype=torch.bool) if attend is None else attend.roll(1, 1)
        left[:, 0] = False
        return left

    def head(self, states: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Logits in float32 of hidden states."""
        with self._precision():
            return self.family.head(self.core, states).float().to(self.device)

    @property
    def matrix(self) -> nn.Linear | None:
        """The LM head where it is one matrix, which can be taken in parts; None where it is more."""
        return self.core.get_output_embeddings() if self.family.head is output_embeddings else None

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

    @contextmanager
    def updating(self, noise: torch.Generator) -> Iterator[None]:
        """Within, gradients are wanted: adapters drop out by `noise`, and activations are kept as the recipe says.

        Everything else is as outside: every other dropout is 0 (models/families).
        """
        self.model.train()
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # dropout reads the global generator; put it back after
                torch.random.manual_seed(noise.initial_seed())
                yield
        finally:
            self.model.eval()

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()
