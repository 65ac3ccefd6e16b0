"""The anchor store, the static dataset of spatial pruning: one earlier response per problem."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stipule.atomic_io import replace_file
from stipule.errors import CheckpointError, StipuleError
from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.pruning import AnchorRule, Anchors, SpatialPruning, select_anchors
from stipule.tasks.answer_content import content_spans, has_answer_tags
from stipule.tasks.problem import Problem, Span, Task
from stipule.types import Rollouts

FORMAT = 2  # of the file; 1 had other names
COLUMNS = ("token_ids", "confidence", "eligible", "correct")


class AnchorStore:
    """Responses by problem key: token ids, confidence when unmasked, which tokens are eligible, whether it is correct.

    A store belongs to one tokenizer and one response length. It is a table, saved as one safetensors file with
    fingerprints of the model and the tokenizer that it was made with.
    """

    def __init__(
        self, gen_length: int, vocab_size: int, keys: Sequence[str] = (), table: dict[str, Tensor] | None = None
    ):
        self.gen_length, self.vocab_size = gen_length, vocab_size
        self.model_calls = 0  # rows x forward passes spent on making it
        self.computed_tokens = 0  # tokens that these computed, without padding
        self.settings: dict[str, Any] = {}  # that decided what is in it
        self.row_of_key = {key: row for row, key in enumerate(keys)}
        self.table = table or {
            "token_ids": torch.zeros(0, gen_length, dtype=torch.int32),
            "confidence": torch.zeros(0, gen_length),
            "eligible": torch.zeros(0, gen_length, dtype=torch.bool),
            "correct": torch.zeros(0, dtype=torch.bool),
        }

    def __len__(self) -> int:
        return len(self.row_of_key)

    def put(
        self, keys: Sequence[str], rollouts: Rollouts, eligible: Bool[Tensor, "B L"], correct: Bool[Tensor, " B"]
    ) -> None:
        """Stores one response per key, in place of an earlier one."""
        new_values = {
            "token_ids": rollouts.completion_ids.cpu().int(),
            "confidence": rollouts.confidence.cpu().float(),
            "eligible": eligible.cpu(),
            "correct": correct.cpu(),
        }
        new_keys = [key for key in dict.fromkeys(keys) if key not in self.row_of_key]
        self.row_of_key.update({key: len(self.row_of_key) + i for i, key in enumerate(new_keys)})
        rows = torch.tensor([self.row_of_key[key] for key in keys], dtype=torch.long)
        for name, values in new_values.items():
            column = torch.cat([self.table[name], values.new_zeros(len(new_keys), *values.shape[1:])])
            column[rows] = values
            self.table[name] = column

    def select(
        self,
        keys: Sequence[str],
        num_generations: int,
        spatial: SpatialPruning,
        noise: Float[Tensor, "Q L"],
        ratios: Sequence[float] | None = None,
    ) -> Anchors:
        """Stage 1 for these problems, `num_generations` equal rows each. A problem without a response has no anchors.

        `ratios` are the problems' own gammas; None: the setting's. All rows of a group share S_fixed: they are samples
        of one conditional distribution, so the group mean is a valid baseline, and they need the same number of forward
        passes (docs/decisions.md, row 11).
        """
        if not len(self):
            nothing = torch.zeros(len(keys) * num_generations, self.gen_length, dtype=torch.long)
            return Anchors(nothing, nothing.bool())
        is_known = torch.tensor([key in self.row_of_key for key in keys])
        rows = torch.tensor([self.row_of_key.get(key, 0) for key in keys])
        eligible = self.table["eligible"][rows] & is_known[:, None]
        if spatial.only_correct:  # otherwise the errors of the base model travel with its anchors
            eligible &= self.table["correct"][rows][:, None]
        confidence = self.table["confidence"][rows]
        token_ids = self.table["token_ids"][rows].long()
        keep = anchor_priority(spatial.keep, token_ids, eligible, confidence, noise)
        fixed_mask = select_anchors(eligible, confidence, ratios or spatial.ratio, keep, noise, spatial.ratio_of)
        return Anchors(token_ids, fixed_mask).repeat(num_generations)

    def save(self, path: Path, policy: MaskedPolicy, finished: bool = True) -> None:
        """Writes the store to one file, whole or not at all."""
        metadata = {
            "format": FORMAT,
            "gen_length": self.gen_length,
            "vocab_size": self.vocab_size,
            "model_calls": self.model_calls,
            "computed_tokens": self.computed_tokens,
            "model": policy.fingerprint(),
            "tokenizer": policy.tokenizer_fingerprint(),
            "finished": finished,
            "settings": self.settings,
            "keys": list(self.row_of_key),
        }
        table = {name: column.contiguous() for name, column in self.table.items()}
        # One entry: safetensors writes several in an order that differs between processes.
        header = {"stipule": json.dumps({**metadata, "sha256": _checksum(metadata, table)})}
        replace_file(path, lambda temporary: save_file(table, temporary, header))

    @classmethod
    def load(
        cls, path: Path, policy: MaskedPolicy, gen_length: int, same_model: bool = True, unfinished: bool = False
    ) -> AnchorStore:
        """Reads a store.

        Raises CheckpointError if it is damaged, was made by an earlier version, for another length or tokenizer, or
        with other weights (`same_model`), or if making it was interrupted (unless `unfinished`).
        """
        rebuild = f"build it with: stipule anchors build RECIPE --out {path}"
        metadata, table = _read(path, rebuild)
        if (metadata["gen_length"], metadata["vocab_size"]) != (gen_length, policy.vocab_size):
            raise CheckpointError(
                f"the anchors at {path} have length {metadata['gen_length']} and a vocabulary of "
                f"{metadata['vocab_size']}; this run has length {gen_length} and {policy.vocab_size}; {rebuild}"
            )
        if metadata["tokenizer"] != policy.tokenizer_fingerprint():
            raise CheckpointError(f"the anchors at {path} were made with another tokenizer; {rebuild}")
        if same_model and metadata["model"] != policy.fingerprint():
            raise CheckpointError(
                f"the anchors at {path} were made with other weights than this run starts from, so they are not its "
                f"own; {rebuild}"
            )
        if not (metadata["finished"] or unfinished):
            raise CheckpointError(
                f"making the store at {path} was interrupted; run the same stipule anchors build again: it continues "
                "from there"
            )
        store = cls(gen_length, policy.vocab_size, metadata["keys"], table)
        store.model_calls, store.settings = metadata["model_calls"], metadata["settings"]
        store.computed_tokens = metadata.get("computed_tokens", 0)  # stores of earlier versions do not have it
        return store


def _read(path: Path, rebuild: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and table of a store's file."""
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})["stipule"])
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"the anchors at {path} were made by an earlier version of stipule, which used other "
                    f"names; {rebuild}"
                )
            table = {name: file.get_tensor(name) for name in COLUMNS}
            checksum = metadata.pop("sha256", None)  # an earlier version wrote none
            if checksum is not None and checksum != _checksum(metadata, table):
                raise CheckpointError(
                    f"the anchors at {path} are damaged: they have changed since they were written; {rebuild}"
                )
            return metadata, table
    except (OSError, SafetensorError, KeyError, ValueError) as cause:
        raise CheckpointError(f"no readable anchor store at {path}: {cause}; {rebuild}") from cause


def _checksum(metadata: Mapping[str, Any], table: Mapping[str, Tensor]) -> str:
    """The SHA-256 of everything else that a store's file contains."""
    digest = hashlib.sha256(json.dumps(metadata).encode())
    for name in COLUMNS:
        digest.update(f"{name} {table[name].dtype} {tuple(table[name].shape)}".encode())
        digest.update(table[name].numpy().tobytes())
    return digest.hexdigest()


def anchor_priority(
    keep: Literal["confident", "random"] | AnchorRule,
    token_ids: Int[Tensor, "Q L"],
    eligible: Bool[Tensor, "Q L"],
    confidence: Float[Tensor, "Q L"],
    noise: Float[Tensor, "Q L"],
) -> Literal["confident", "random"] | Float[Tensor, "Q L"]:
    """`keep` for `select_anchors`: the priorities of a rule of your own.

    Raises StipuleError for a tensor of another shape, or with NaN.
    """
    if isinstance(keep, str):
        return keep
    priority = keep.priority(token_ids, eligible, confidence, noise)
    if priority.shape != eligible.shape or bool(priority.isnan().any()):
        raise StipuleError(
            f"pruning.spatial.keep: {type(keep).__name__}.priority returned a tensor of shape {tuple(priority.shape)} "
            f"with {int(priority.isnan().sum())} NaN; it must return a number for each token, in the shape "
            f"{tuple(eligible.shape)}"
        )
    return priority


def eligible_tokens(
    policy: MaskedPolicy,
    task: Task,
    problems: Sequence[Problem],
    rollouts: Rollouts,
    protect: Literal["answer", "answer_content"] = "answer",
) -> Bool[Tensor, "B L"]:
    """Which tokens of a response may become anchors of its problem.

    Never eligible: end-of-text, padding, masks and other special tokens (otherwise the most confident anchors are all
    end-of-text and prune nothing); anything after the end; the answer and its tags (section 5.2: no reward hacking).
    With `protect` answer_content, as in the authors' code, only what tags and boxes contain; a task whose responses
    have no tags keeps its whole answer protected.
    """
    is_content = protect == "answer_content" and has_answer_tags(task)

    def spans_of(problem: Problem, text: str) -> list[Span]:
        return content_spans(text) if is_content else task.protected_spans(problem, text)

    rows = zip(problems, rollouts.completion_ids.tolist(), rollouts.completion_mask.tolist(), strict=True)
    eligible = [_eligible(policy, partial(spans_of, problem), token_ids, inside) for problem, token_ids, inside in rows]
    return torch.tensor(eligible, dtype=torch.bool)


def _eligible(
    policy: MaskedPolicy, spans_of: Callable[[str], list[Span]], token_ids: list[int], inside: list[bool]
) -> list[bool]:
    # Spans refer to the concatenated token texts, so every character belongs to exactly one token.
    texts = [policy.token_text(token) if is_inside else "" for token, is_inside in zip(token_ids, inside, strict=True)]
    ends = list(accumulate(map(len, texts)))
    spans = spans_of("".join(texts))
    return [_is_outside(spans, end - len(text), end) for text, end in zip(texts, ends, strict=True)]


def _is_outside(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Whether a token that covers characters [start, end) has text and overlaps no protected span."""
    return end > start and not any(first < end and start < last for first, last in spans)
