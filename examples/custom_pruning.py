"""Two pruning rules of your own: which tokens become anchors, and when a response is finished in one forward pass.

stipule train quickstart training.steps=2 --out runs/mine \
    pruning.temporal.kind=examples/custom_pruning.py:JointConfidence
stipule train quickstart training.steps=2 --out runs/mine pruning.spatial.keep=examples/custom_pruning.py:LastTokens
"""

from dataclasses import dataclass

import torch

from stipule.rollouts.schedule import Cutoff, floor_fraction


@dataclass(frozen=True, kw_only=True)
class JointConfidence:
    """Finishes a response when the product of the probabilities of all its remaining tokens is high enough."""

    cutoff: float = 0.5  # the largest fraction of masks that one forward pass may finish
    threshold: float = 0.5  # smallest product
    planned_cutoff = Cutoff()  # no forward pass is certain to be saved, so `stipule plan` prints the cost without any

    def finish_window(self, gen_length):
        return floor_fraction(self.cutoff, gen_length)

    def finishing_rows(self, confidence, row, rows):
        log_product = torch.zeros(len(rows), device=row.device).index_add(0, row, confidence.log())
        return rows & (log_product.exp() >= self.threshold)


@dataclass(frozen=True, kw_only=True)
class LastTokens:
    """Fixes the last eligible tokens of the earlier response, so that the policy writes the beginning anew."""

    def priority(self, token_ids, eligible, confidence, noise):
        return torch.arange(token_ids.shape[1]).expand(token_ids.shape).float()
