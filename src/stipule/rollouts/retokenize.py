"""Anchors that pass through text, as in the code of STP's authors: decoded, and encoded again."""

from __future__ import annotations

import torch

from stipule.models.masked_policy import MaskedPolicy
from stipule.rollouts.pruning import Anchors


def retokenize_anchors(policy: MaskedPolicy, anchors: Anchors) -> Anchors:
    """The anchors that the text of the masked responses has.

    Of each response, up to its end, all tokens but the anchors become masks. It is decoded, masks included, and the
    text is encoded again from the first position. So an anchor is another token, or at another position, where the
    tokenizer does not give back what it has decoded. What is longer than the response is cut; nothing is fixed after
    the end of the text. A row without anchors stays as it is, and a special token is never an anchor.
    """
    rows: dict[tuple[int, ...], tuple[list[int], list[bool]]] = {}
    texts = [
        tuple(_masked(policy, ids, fixed))
        for ids, fixed in zip(anchors.token_ids.tolist(), anchors.fixed_mask.tolist(), strict=True)
    ]
    width = anchors.token_ids.shape[1]
    for text in texts:
        if text not in rows:  # the rows of a group are equal
            rows[text] = _encoded(policy, list(text), width)
    token_ids = torch.tensor([rows[text][0] for text in texts]).to(anchors.token_ids)
    return Anchors(token_ids, torch.tensor([rows[text][1] for text in texts]).to(anchors.fixed_mask))


def num_changed_rows(first: Anchors, second: Anchors) -> int:
    """The number of rows whose anchors are other tokens, or at other positions."""
    tokens = [anchors.token_ids.masked_fill(~anchors.fixed_mask, -1) for anchors in (first, second)]
    return int((tokens[0] != tokens[1]).any(1).sum())


def _masked(policy: MaskedPolicy, ids: list[int], fixed: list[bool]) -> list[int]:
    """The tokens of a response up to its end, with a mask in place of each that is no anchor."""
    end = ids.index(policy.eos_id) if policy.eos_id in ids else len(ids)
    return [token if is_fixed else policy.mask_id for token, is_fixed in zip(ids[:end], fixed[:end], strict=True)]


def _encoded(policy: MaskedPolicy, ids: list[int], width: int) -> tuple[list[int], list[bool]]:
    """The tokens of the text of `ids`, filled with masks to `width`, and which of them are anchors."""
    tokenizer = policy.tokenizer
    text = tokenizer.decode(ids, skip_special_tokens=False) if set(ids) - {policy.mask_id} else ""
    encoded: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"][:width] if text else []
    special = {policy.mask_id, *tokenizer.all_special_ids}
    padded = encoded + [policy.mask_id] * (width - len(encoded))
    return padded, [token not in special for token in padded]
