"""SPG's sandwich: a lower bound of the likelihood where it should rise, an upper bound where it should fall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stipule.errors import RecipeError
from stipule.estimators.levels import uniform_counts
from stipule.estimators.views import exact_hidden, views_of, weighted_sum
from stipule.types import Responses, Views

NEVER = -1e30  # a logarithm of 0 that keeps gradients finite


@dataclass(frozen=True, kw_only=True)
class Spg:
    """ELBO where A > 0, and w EUBO + (1 - w) ELBO where A <= 0 (Wang et al. 2025, arXiv 2510.09541).

    EUBO = (1/beta) sum_i log mean_k [ 1[i in M_k] w_k p(x0_i | x_k)^beta ], w_k the weight of view k before the mean;
    the mean of K draws stands under the logarithm, so K draws are biased low (Jensen). Tokens that no view hides have
    no term and the rest stand for them.

    `masks`, with n scored tokens in all and n_b of them in block b:
      random   k ~ U{1..n} of all scored tokens, w = n/k
      block    a uniform block b of the live ones: earlier tokens clean, k ~ U{1..n_b} of block b hidden, everything
               later hidden; only block b is scored, w = blocks n_b / k. Its mean is the semi-autoregressive ELBO,
               sum_b E_k [n_b/k S_b], still a lower bound of log p.
    `prompt_mask` hides prompt tokens, and clean tokens of the response, as context withheld.

    `compat` does what the published code does: in block mode the restriction to the block is built but never used, so
    every hidden token counts alike (those of later blocks and the withheld ones too), w = n / hidden, and block ids
    are a permutation modulo the live blocks, which is not uniform.
    """

    kind: Literal["spg"] = "spg"
    samples: int = 2  # K
    masks: Literal["random", "block"] = "block"
    block: int = 32  # tokens
    beta: float = 1.5  # the published value; 1.0 for Sudoku, 1 or more for an upper bound
    mixture: float = 0.5  # w: share of the EUBO where A <= 0
    prompt_mask: float = 0.15
    compat: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1 or self.block < 1:
            raise RecipeError(
                f"estimator has samples {self.samples} and block {self.block}; both must be 1 or more; try 2 and 32"
            )
        if self.beta < 1:
            raise RecipeError(
                f"estimator.beta is {self.beta}; below 1 the EUBO is no upper bound; it must be 1 or more; try 1.5"
            )
        if not 0 <= self.mixture <= 1 or not 0 <= self.prompt_mask < 1:
            raise RecipeError(
                f"estimator has mixture {self.mixture} and prompt_mask {self.prompt_mask}; they are shares and must "
                "lie in [0, 1] and [0, 1); try 0.5 and 0.15"
            )

    def views(self, length: int, calls: int) -> int:
        return self.samples

    def draw(self, responses: Responses, updates: int, generator: torch.Generator) -> list[Views]:
        """K views for each update."""
        return [self._draw(responses, generator) for _ in range(updates)]

    def _draw(self, responses: Responses, generator: torch.Generator) -> Views:
        scored, free, prompt = responses.scored.cpu(), responses.free.cpu(), responses.prompt_mask.cpu()
        rows, length = scored.shape
        shape = (self.samples, rows)
        u = torch.rand(shape, generator=generator, dtype=torch.float64)
        noise = torch.rand(*shape, length, generator=generator)
        withheld = torch.rand(*shape, length, generator=generator) < self.prompt_mask
        hidden_prompt = (torch.rand(*shape, prompt.shape[1], generator=generator) < self.prompt_mask) & prompt

        if self.masks == "random":
            inside, later, blocks = scored.expand(*shape, length), torch.zeros_like(withheld), torch.ones(())
        else:
            inside, later, blocks = self._blocks(scored, generator)
        n_inside = inside.sum(2)
        count = uniform_counts(u.view(1, -1), 1, n_inside.flatten()).view(shape)
        chosen = exact_hidden(count.view(1, -1), inside.flatten(0, 1), noise.flatten(0, 1)[None]).view_as(inside)
        hidden = chosen | ((later | (withheld & scored)) & free)
        if self.compat:
            read = hidden & scored
            worth = scored.sum(1) / read.sum(2).clamp(min=1)
        else:
            read = chosen
            worth = blocks * n_inside / count
        return views_of(responses, hidden, worth[:, :, None].float() * read / self.samples, hidden_prompt)

    def _blocks(
        self, scored: Bool[Tensor, "B L"], generator: torch.Generator
    ) -> tuple[Bool[Tensor, "K B L"], Bool[Tensor, "K B L"], Float[Tensor, " B"]]:
        """The scored tokens of one block a view, what comes after it, and how many blocks there are to choose from."""
        rows, length = scored.shape
        block_of = torch.arange(length) // self.block
        total = int(block_of[-1]) + 1
        there = torch.zeros(rows, total).index_add(1, block_of, scored.float()) > 0  # blocks with scored tokens
        blocks = there.sum(1)
        if self.compat:
            order = torch.rand(rows, total, generator=generator).argsort(1)
            place = order[:, torch.arange(self.samples) % total].T % blocks.clamp(min=1)
        else:
            place = (torch.rand(self.samples, rows, generator=generator, dtype=torch.float64) * blocks).long()
        # From the place among the live blocks to the block's own number.
        number = (there.long().cumsum(1) - 1)[None] == place[:, :, None]
        block = (number & there).long().argmax(2)[:, :, None]
        inside = (block_of == block) & scored
        # After the end of the text everything is hidden: what stands there would tell where the text ends.
        after = scored.flip(1).long().cumsum(1).flip(1) == 0
        return inside, (block_of > block) | after, blocks.double()

    def read(self, logp: Float[Tensor, "K B L"], views: Views, advantage: Float[Tensor, " B"]) -> Float[Tensor, "B L"]:
        """The score of each token; its sum is a bound of the log-likelihood, lower or mixed by the advantage's sign."""
        lower = weighted_sum(self, logp, views, advantage)
        upper = self.mixture * self.upper(logp, views) + (1 - self.mixture) * lower
        return torch.where((advantage > 0)[:, None], lower, upper)

    def upper(self, logp: Float[Tensor, "K B L"], views: Views) -> Float[Tensor, "B L"]:
        """The EUBO's term of each token."""
        asked = views.weight > 0
        seen = asked.any(0)
        worth = views.weight.where(asked, 1.0).log()  # the mean over K is in the weight
        terms = (self.beta * logp + worth).where(asked, NEVER).logsumexp(0) / self.beta
        standing = views.counted.sum(1) / seen.sum(1).clamp(min=1)
        return terms.where(seen, 0.0) * standing[:, None]
