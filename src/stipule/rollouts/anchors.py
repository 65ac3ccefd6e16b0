"""The static dataset of spatial pruning: one earlier response per problem, with what of it may be fixed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stipule.errors import CheckpointError
from stipule.files import replace_file
from stipule.models.policy import MaskedPolicy
from stipule.rollouts.pruning import Anchors, Spatial, choose_fixed
from stipule.tasks.problem import Problem, Task
from stipule.types import Responses


class AnchorStore:
    """Responses by problem key: token ids, commit-time confidence, what is eligible as an anchor, what was right.

    A store belongs to one tokenizer and one response length. It is a compact table, saved as one safetensors file
    with fingerprints of the model and the tokenizer that it was made with.
    """

    def __init__(self, length: int, vocabulary: int, keys: Sequence[str] = (), table: dict[str, Tensor] | None = None):
        self.length, self.vocabulary = length, vocabulary
        self.model_calls = 0  # rows x calls that making it has cost
        self.made_by: dict[str, Any] = {}  # settings that decided what is in it
        self.rows = {key: row for row, key in enumerate(keys)}
        self.table = table or {
            "tokens": torch.zeros(0, length, dtype=torch.int32),
            "confidence": torch.zeros(0, length),
            "eligible": torch.zeros(0, length, dtype=torch.bool),
            "correct": torch.zeros(0, dtype=torch.bool),
        }

    def __len__(self) -> int:
        return len(self.rows)

    def put(
        self, keys: Sequence[str], responses: Responses, eligible: Bool[Tensor, "B L"], correct: Bool[Tensor, " B"]
    ) -> None:
        """Remembers one response per key, in place of what was there."""
        fresh = {
            "tokens": responses.tokens.cpu().int(),
            "confidence": responses.confidence.cpu().float(),
            "eligible": eligible.cpu(),
            "correct": correct.cpu(),
        }
        new = [key for key in dict.fromkeys(keys) if key not in self.rows]
        self.rows.update({key: len(self.rows) + i for i, key in enumerate(new)})
        where = torch.tensor([self.rows[key] for key in keys], dtype=torch.long)
        for name, values in fresh.items():
            grown = torch.cat([self.table[name], values.new_zeros(len(new), *values.shape[1:])])
            grown[where] = values
            self.table[name] = grown

    def anchors(
        self,
        keys: Sequence[str],
        group: int,
        spatial: Spatial,
        noise: Float[Tensor, "Q L"],
        ratios: Sequence[float] | None = None,
    ) -> Anchors:
        """Stage 1 for these problems, `group` equal rows each; a problem that is not in the store gets no anchors.

        `ratios` are the problems' own gammas, where they vary; else it is the setting's.

        All rows of a group share S_fixed: they come from one conditional distribution, so the group mean is a valid
        baseline, and they need the same number of model calls (docs/decisions.md, row 11).
        """
        known = torch.tensor([key in self.rows for key in keys])
        row = torch.tensor([self.rows.get(key, 0) for key in keys])
        if not len(self):
            nothing = torch.zeros(len(keys) * group, self.length, dtype=torch.long)
            return Anchors(nothing, nothing.bool())
        eligible = self.table["eligible"][row] & known[:, None]
        if spatial.only == "rewarded":  # else a base's bad habit travels with its anchors
            eligible &= self.table["correct"][row][:, None]
        fixed = choose_fixed(eligible, self.table["confidence"][row], ratios or spatial.ratio, spatial.keep, noise)
        tokens = self.table["tokens"][row].long()
        return Anchors(tokens.repeat_interleave(group, 0), fixed.repeat_interleave(group, 0))

    def save(self, path: Path, policy: MaskedPolicy, finished: bool = True) -> None:
        """Writes the store to one file, whole or not at all."""
        about = {"length": self.length, "vocabulary": self.vocabulary, "model_calls": self.model_calls}
        marks = {
            "model": policy.fingerprint(),
            "tokenizer": policy.tokenizer_fingerprint(),
            "finished": finished,
            "made_by": self.made_by,
        }
        notes = {**about, **marks, "keys": list(self.rows)}
        packed = {name: tensor.contiguous() for name, tensor in self.table.items()}
        replace_file(path, lambda temporary: save_file(packed, temporary, {"stipule": json.dumps(notes)}))

    @classmethod
    def load(
        cls, path: Path, policy: MaskedPolicy, length: int, same_model: bool = True, unfinished: bool = False
    ) -> AnchorStore:
        """Reads a store.

        Raises CheckpointError if it is damaged, was made for another length, tokenizer or (`same_model`) with other
        weights, or if making it was cut off, unless that is what is asked for.
        """
        again = f"build it with: stipule anchors build RECIPE --out {path}"
        try:
            with safe_open(path, "pt") as file:
                notes = json.loads((file.metadata() or {})["stipule"])
                table = {name: file.get_tensor(name) for name in ("tokens", "confidence", "eligible", "correct")}
                marks = notes["model"], notes["tokenizer"], notes["finished"], notes["made_by"]
        except (OSError, SafetensorError, KeyError, ValueError) as cause:
            raise CheckpointError(f"no readable anchor store at {path}: {cause}; {again}") from cause
        model, tokenizer, finished, _ = marks
        if (notes["length"], notes["vocabulary"]) != (length, policy.vocabulary):
            raise CheckpointError(
                f"the anchors at {path} have length {notes['length']} and a vocabulary of {notes['vocabulary']}; "
                f"this run has length {length} and {policy.vocabulary}; {again}"
            )
        if tokenizer != policy.tokenizer_fingerprint():
            raise CheckpointError(f"the anchors at {path} were made with another tokenizer; {again}")
        if same_model and model != policy.fingerprint():
            raise CheckpointError(
                f"the anchors at {path} were made with other weights than this run starts from, so they are not its "
                f"own; {again}"
            )
        if not (finished or unfinished):
            raise CheckpointError(
                f"the store at {path} was cut off while it was being made; run the same stipule anchors build again: "
                "it goes on from there"
            )
        store = cls(length, policy.vocabulary, notes["keys"], table)
        store.model_calls, store.made_by = notes["model_calls"], notes["made_by"]
        return store


def eligible_tokens(
    policy: MaskedPolicy, task: Task, problems: Sequence[Problem], responses: Responses
) -> Bool[Tensor, "B L"]:
    """Which tokens of a response may become anchors of its problem.

    Never: end-of-text, padding, masks and other special tokens (the most confident anchors otherwise are all
    end-of-text and prune nothing); anything after the end; the answer and its tags (section 5.2: no reward hacking).
    """
    allowed = [
        _allowed(policy, task, problem, row, live)
        for problem, row, live in zip(problems, responses.tokens.tolist(), responses.live.tolist(), strict=True)
    ]
    return torch.tensor(allowed, dtype=torch.bool)


def _allowed(policy: MaskedPolicy, task: Task, problem: Problem, tokens: list[int], live: list[bool]) -> list[bool]:
    # Spans are found in the text that the pieces make, so every character belongs to exactly one token.
    pieces = [policy.piece(token) if alive else "" for token, alive in zip(tokens, live, strict=True)]
    ends = list(accumulate(map(len, pieces)))
    spans = task.protected(problem, "".join(pieces))
    return [_free_of(spans, end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]


def _free_of(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Whether a token that covers characters [start, end) has text and touches no protected span."""
    return end > start and not any(begin < end and start < stop for begin, stop in spans)
