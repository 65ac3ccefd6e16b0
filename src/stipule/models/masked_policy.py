"""A transformers model as a policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stipule.errors import CheckpointError
from stipule.models.attention_mask import block_causal_mask, full_attention_mask
from stipule.models.block_copies import block_copies
from stipule.models.families import family_of, max_positions, output_embeddings
from stipule.models.fingerprints import tokenizer_fingerprint, weights_fingerprint
from stipule.models.kv_cache import KVCache, check_supports_kv_cache
from stipule.models.last_layer import last_layer_only_at
from stipule.models.policy import Messages
from stipule.models.prompt_encoding import encode_prompts
from stipule.models.special_tokens import find_special_tokens, ids_without_token
from stipule.models.upload import upload
from stipule.rng import generator_devices
from stipule.types import Prompts


class MaskedPolicy:
    """A transformers model with its tokenizer, as a `Policy`.

    It stays in evaluation mode, so dropout is off (the ratio of eq. 4 must be 1 where nothing has changed), except
    inside `update_mode`. Float32 weights compute in float32, or in bfloat16 autocast if `autocast` is set. Sampling,
    likelihoods and training use the same precision, so that their log-probabilities agree.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        published_config: Mapping[str, Any],
        autocast: bool = False,
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.published_config = dict(published_config)  # config.json as it was read; it is written back unchanged
        self.autocast = autocast
        self.ref_model: nn.Module | None = None  # the reference of full fine-tuning; LoRA needs none
        self.adapter_base = ""  # the base that a loaded adapter names; set by load_policy
        self.base_fingerprint = ""  # of the weights that adapters are trained on; set by load_policy
        self.precision = "float32"  # of the base's weights, in words
        self.family = family_of(published_config)
        self.sharded = False  # whether weights are distributed over ranks (models/sharding.py)
        self._token_texts: dict[int, str] = {}
        config = self.unwrapped_model.config
        self.first_position = self.family.first_position(config)
        self.mask_id, self.eos_id, self.pad_id = find_special_tokens(
            published_config, tokenizer, self.family, config.vocab_size
        )
        positions = max_positions(config)
        self.max_length = None if positions is None else positions - self.first_position  # tokens of prompt + response
        self._unsampled_ids = torch.tensor([self.mask_id, *ids_without_token(tokenizer, config.vocab_size)])

    @property
    def unwrapped_model(self) -> PreTrainedModel:
        """The transformers model, without its LoRA wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model  # type: ignore

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def vocab_size(self) -> int:
        """V, the number of rows of the LM head."""
        return self.unwrapped_model.config.vocab_size

    @property
    def block_length(self) -> int | None:
        """Tokens of a block if attention is causal between blocks; None if every token attends to every other one."""
        return self.family.block_length

    @property
    def unsampled_ids(self) -> Int[Tensor, " E"]:
        """Ids that the sampler never draws: the mask, and rows of the LM head for which there is no token."""
        return upload(self._unsampled_ids, self.device)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that an optimizer may change, by name. With sharded weights: this rank's shards."""
        for module in self.model.modules() if self.sharded else ():
            if isinstance(module, FSDPModule):
                module.reshard()  # until then gathered weights are in the place of the shards
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def encode(self, prompts: Sequence[Messages]) -> Prompts:
        """Applies the chat template if the tokenizer has one, then pads on the left to the longest prompt.

        Raises CheckpointError for a conversation if the tokenizer has no chat template, StipuleError for text that the
        tokenizer has no tokens for.
        """
        return self.pad_left(encode_prompts(self.tokenizer, prompts))

    def encode_raw(self, texts: Sequence[str]) -> Prompts:
        """Encodes texts without a chat template, then pads on the left to the longest."""
        return self.pad_left([self.tokenizer(text)["input_ids"] for text in texts])

    def pad_left(self, rows: Sequence[list[int]]) -> Prompts:
        """Token ids as a batch, padded on the left to the longest."""
        longest = max(map(len, rows))
        prompt_ids = torch.tensor([[self.pad_id] * (longest - len(row)) + row for row in rows])
        prompt_mask = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
        return Prompts(upload(prompt_ids, self.device), upload(prompt_mask, self.device))

    def decode(self, token_ids: Int[Tensor, "B L"], stop_at_eos: bool = True) -> list[str]:
        """The text of each row up to its first end-of-text token, or all of it; without special tokens."""
        rows = token_ids.tolist()
        if stop_at_eos:
            rows = [row[: row.index(self.eos_id)] if self.eos_id in row else row for row in rows]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def token_text(self, token: int) -> str:
        """The text of one token; empty for special tokens."""
        if token not in self._token_texts:
            self._token_texts[token] = self.tokenizer.decode([token], skip_special_tokens=True)
        return self._token_texts[token]

    def token_label(self, token: int) -> str:
        """The text of one token, or the name of a special token; the id if there is no such token."""
        return self.token_text(token) or self.tokenizer.convert_ids_to_tokens(token) or f"<{token}>"

    def fingerprint(self) -> str:
        """A short hash of the weights without adapters, from names, shapes and some numbers of each tensor.

        Adapters change none of these, so with adapters it is the hash that was computed before they were added.
        """
        if self.base_fingerprint:
            return self.base_fingerprint
        return weights_fingerprint(self.unwrapped_model)

    def tokenizer_fingerprint(self) -> str:
        """A short hash of the vocabulary and the chat template."""
        return tokenizer_fingerprint(self.tokenizer)

    def hidden_states(
        self,
        input_ids: Int[Tensor, "N T"],
        attention_mask: Bool[Tensor, "N T"] | None,
        position_mask: Bool[Tensor, "N T"],
        num_positions: int | None = None,
        kv_cache: Any = None,
    ) -> Float[Tensor, "M D"]:
        """Last hidden states that predict the positions of `position_mask`, row by row.

        A block model attends to the tokens of the same block and of earlier ones; the first real token begins a block.
        `attention_mask` is True on real tokens; None means that all are real, and lets attention take its fast path.
        `num_positions` is the number of True in `position_mask`; without it the host waits for the GPU to count them.
        `kv_cache` receives the keys and values of every layer (models/kv_cache.py).
        """
        left = self.has_left_neighbour(input_ids, attention_mask) if self.family.shift_logits else None
        indices = self.predicting_positions(position_mask, num_positions, left)
        position_ids = self._position_ids(input_ids, attention_mask)
        mask: Tensor | None = attention_mask
        if self.block_length is not None:
            if position_ids is None:
                position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
            mask = block_causal_mask(self.unwrapped_model, attention_mask, position_ids, self.block_length)
        elif attention_mask is not None and self.family.supports_kv_cache:  # of others some have sliding windows
            mask = full_attention_mask(self.unwrapped_model, attention_mask, input_ids.shape[1])
        return self.forward(input_ids, mask, position_ids, indices, kv_cache).to(position_mask.device)

    def block_hidden_states(
        self,
        clean_ids: Int[Tensor, "N T"],
        noisy_ids: Int[Tensor, "N C L"],
        attention_mask: Bool[Tensor, "N T"] | None,
        position_mask: Bool[Tensor, "N C L"],
        num_positions: int | None = None,
    ) -> Float[Tensor, "M D"]:
        """Last hidden states of a block model that predict positions of C noisy responses, all blocks in one pass.

        The last L columns of `clean_ids` are the response. Each block of `noisy_ids` sees the clean tokens before it
        (models/block_copies.py).
        """
        assert self.block_length is not None
        real = torch.ones_like(clean_ids, dtype=torch.bool) if attention_mask is None else attention_mask
        copies = block_copies(self.unwrapped_model, clean_ids, noisy_ids, real, position_mask, self.block_length)
        left = copies.steps_to_left if self.family.shift_logits else None
        indices = self.predicting_positions(copies.position_mask, num_positions, left)
        states = self.forward(copies.input_ids, copies.attention_mask, copies.position_ids, indices, None)
        return states.to(position_mask.device)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        indices: Int[Tensor, " M"],
        kv_cache: Any,
    ) -> Float[Tensor, "M D"]:
        """The last hidden states at indices into the flattened tokens."""
        cache = {} if kv_cache is None else {"past_key_values": kv_cache}
        base_model = self.unwrapped_model.base_model
        last_layer = last_layer_only_at(indices, input_ids.numel(), base_model, self.family.position_wise)
        with self._precision(), last_layer:
            hidden_states = base_model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False, **cache
            ).last_hidden_state
        return hidden_states.flatten(0, 1).index_select(0, indices.to(hidden_states.device))

    def predicting_positions(
        self, position_mask: Tensor, num_positions: int | None, left: Tensor | None
    ) -> Int[Tensor, " M"]:
        """Flattened indices whose states predict these positions; of a shifted model those `left` tokens before."""
        flat = position_mask.flatten()
        index = (flat.nonzero() if num_positions is None else torch.nonzero_static(flat, size=num_positions))[:, 0]
        return index if left is None else index - left.flatten()[index].long()

    def _position_ids(
        self, input_ids: Int[Tensor, "N T"], attention_mask: Bool[Tensor, "N T"] | None
    ) -> Int[Tensor, "N T"] | None:
        """Position ids count real tokens, so padding shifts nothing; None if the model's own count is the same."""
        if attention_mask is None:
            if not self.first_position:
                return None
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0) + self.first_position

    def has_left_neighbour(
        self, input_ids: Int[Tensor, "N T"], attention_mask: Bool[Tensor, "N T"] | None
    ) -> Bool[Tensor, "N T"]:
        """Where a shifted model has a real token to the left, which predicts this one. The first predicts itself."""
        left = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.roll(1, 1)
        left[:, 0] = False
        return left

    def lm_head(self, hidden_states: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Logits in float32."""
        with self._precision():
            return self.family.lm_head(self.unwrapped_model, hidden_states).float().to(self.device)

    @property
    def lm_head_matrix(self) -> nn.Linear | None:
        """The LM head if it is one matrix, which can be computed in tiles; else None."""
        return self.unwrapped_model.get_output_embeddings() if self.family.lm_head is output_embeddings else None

    @property
    def compute_dtype(self) -> torch.dtype:
        """The precision of matrix products."""
        return torch.bfloat16 if self.autocast else self.unwrapped_model.get_output_embeddings().weight.dtype

    def logits(
        self,
        input_ids: Int[Tensor, "N T"],
        attention_mask: Bool[Tensor, "N T"] | None,
        position_mask: Bool[Tensor, "N T"],
        num_positions: int | None = None,
    ) -> Float[Tensor, "M V"]:
        """Logits of the M positions of `position_mask`. The LM head computes no other position."""
        return self.lm_head(self.hidden_states(input_ids, attention_mask, position_mask, num_positions))

    def new_kv_cache(self, rows: int, width: int) -> KVCache:
        """An empty cache of keys and values. Raises RecipeError for a family that does not support one."""
        check_supports_kv_cache(self.family)
        return KVCache(self, rows, width)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the policy is the model that training started from: adapters off, or the frozen copy."""
        if hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():  # type: ignore[operator]
                yield
            return
        if self.ref_model is None:
            raise CheckpointError(
                "the policy has no reference model: load it with reference=True (training with beta > 0 does so)"
            )
        current, self.model = self.model, self.ref_model
        try:
            yield
        finally:
            self.model = current

    @contextmanager
    def update_mode(self, generator: torch.Generator) -> Iterator[None]:
        """Inside, gradients are computed: adapter dropout is seeded by the generator, gradient checkpointing is on.

        Every other dropout is 0 (models/families).
        """
        self.model.train()
        try:
            # Dropout reads the global generator; it is restored afterwards.
            with torch.random.fork_rng(generator_devices(self.device)):
                torch.random.manual_seed(generator.initial_seed())
                yield
        finally:
            self.model.eval()

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()
