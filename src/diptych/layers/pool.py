"""From a sequence to one vector."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.tokens import Tokens


class Pooler(nn.Module):
    """BERT's pooler: linear and tanh on the first token."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, first: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return self.dense(first).tanh()


def last(tokens: Tokens) -> Float[Tensor, "b d"]:
    """The last token of each sample, whose real ones stand in front."""
    following = F.pad(tokens.real[:, 1:], (0, 1))
    return tokens.rows(tokens.real & ~following)
