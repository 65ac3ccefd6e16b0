"""From a value per token to one loss."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

# sequence: eq. 1. token: the published code of d1, SPG and DiffuCoder. sum: wd1.
Aggregate = Literal["sequence", "token", "sum"]


def aggregate(kind: Aggregate, values: Float[Tensor, "B L"], counted: Bool[Tensor, "B L"]) -> Float[Tensor, ""]:
    """
    sequence  mean over rows of the mean over a row's counted tokens (eq. 1); a row without any counts as 0
    token     sum over all counted tokens / their number: long responses weigh more, and the value depends on how rows
              are portioned (`training.score_rows`), as it does in the published code
    sum       mean over rows of the sum over a row's counted tokens: no length in the loss
    """
    total = (values * counted).sum(1)
    if kind == "sequence":
        return (total / counted.sum(1).clamp(min=1)).mean()
    if kind == "token":
        return total.sum() / counted.sum().clamp(min=1)
    return total.mean()
