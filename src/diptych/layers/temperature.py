"""The learned factor of cosines, without which a softmax of them could hardly tell candidates apart."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LogScale(nn.Module):
    """A learned factor for cosines, kept as its logarithm (CLIP, 2.5: begins at 1 / 0.07). `most` holds it as Temperature's bounds."""

    def __init__(self, start: float = 1 / 0.07, most: float = math.inf):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))
        self.most = most

    def forward(self) -> Float[Tensor, ""]:
        if not self.training:  # only read, the parameter stays as it was imported
            return self.log.exp().clamp(max=self.most)
        self.log.detach().clamp_(max=math.log(self.most))
        return self.log.exp()


class Temperature(nn.Module):
    """A learned divisor of cosines, kept as itself (ALBEF begins at 0.07): gives the factor 1 / temperature.

    `bounds` hold it, as the official codes do, by moving the parameter itself: out of them it stays trainable.
    """

    def __init__(self, start: float = 0.07, bounds: tuple[float, float] | None = (0.001, 0.5)):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start))
        self.bounds = bounds

    def forward(self) -> Float[Tensor, ""]:
        if self.bounds is not None:
            with torch.no_grad():
                self.value.clamp_(*self.bounds)
        return 1 / self.value
