"""Early summation: both modalities' tokens are added place by place, and one transformer reads the sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.layout import Span
from diptych.tokens import Pair, Tokens


class EarlySum(nn.Module):
    """Text token i and image token i as one token, weighted by two learned factors (Xu et al., TPAMI 2023, table 3: early
    summation); read at the first. Where one sequence has ended, the other goes on alone.

    Differs: the survey leaves the factors to the user; here they are learned, from 1 and 1.
    """

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, pooler: nn.Module):
        super().__init__()
        self.blocks, self.norm, self.pooler = blocks, norm, pooler
        self.shares = nn.Parameter(torch.ones(2))

    def alone(self, tokens: Tokens) -> Tokens:
        """One modality through the same blocks."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.map(self.norm)

    def forward(self, text: Tokens, image: Tokens) -> Pair:
        n = max(text.real.shape[1], image.real.shape[1])
        values = self.shares[0] * _laid(text, n) + self.shares[1] * _laid(image, n)
        real = _wide(text.real, n) | _wide(image.real, n)
        both = self.alone(Tokens.of(values, real, Span("both", "sums", n)))
        canvas = both.canvas()
        return Pair(_of(canvas, text), _of(canvas, image), self.pooler(both.first()))


def _laid(tokens: Tokens, n: int) -> Tensor:
    """Values on a canvas of n columns, zero where nothing is real."""
    values = tokens.canvas() * tokens.real[:, :, None]
    return F.pad(values, (0, 0, 0, n - values.shape[1]))


def _wide(real: Tensor, n: int) -> Tensor:
    return F.pad(real, (0, n - real.shape[1]))


def _of(canvas: Tensor, like: Tokens) -> Tokens:
    """The columns at which a modality's own tokens lay."""
    tokens = Tokens(canvas[:, : like.real.shape[1]], like.layout)
    return tokens.pack() if like.packed else tokens
