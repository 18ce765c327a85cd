"""From a sequence to one vector."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class Pooler(nn.Module):
    """BERT's pooler: linear and tanh on the first token."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, first: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return self.dense(first).tanh()
