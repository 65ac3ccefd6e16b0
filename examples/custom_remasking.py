"""An unmasking rule of your own: first where the most probable token is far ahead of the second (Kim et al. 2025).

stipule train quickstart sampler.remasking=examples/custom_remasking.py:Margin training.steps=2 --out runs/mine
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Margin:
    """The priority of a position is the difference between the two highest probabilities of its tokens."""

    exponent: float = 1.0  # of the probabilities; below 1 it counts less how certain the first token is

    def __post_init__(self):
        if self.exponent <= 0:
            raise ValueError(f"exponent is {self.exponent}; it must be above 0; try 1")

    def priority(self, log_probs, token, confidence, position_noise):
        first, second = (self.exponent * log_probs.topk(2, dim=1).values).exp().unbind(1)
        return first - second
