"""A text that meets two images at once: attention to each, and the two answers as one."""

from __future__ import annotations

import torch
from torch import nn

from diptych.layers.attention import CrossAttention, SelfAttention
from diptych.layers.feedforward import FeedForward
from diptych.tokens import Tokens


class TwinCrossAttention(nn.Module):
    """Attention to two contexts, with weights of its own for each; the mean of both, or with `merge` a linear of the two
    side by side (BLIP's form for NLVR2: section 5.4, figure 5 b).
    """

    def __init__(self, width: int, heads: int, context_width: int, merge: bool = False):
        super().__init__()
        self.first, self.second = (CrossAttention(width, heads, context_width) for _ in range(2))
        self.merge = nn.Linear(2 * width, width) if merge else None

    def forward(self, tokens: Tokens, contexts: tuple[Tokens, ...]) -> Tokens:
        first, second = contexts
        a, b = self.first(tokens, first), self.second(tokens, second)
        if self.merge is None:
            return (a + b).map(lambda x: x / 2)
        return Tokens(self.merge(torch.cat([a.values, b.values], -1)), tokens.layout)


class TwinBlock(nn.Module):
    """BERT's block (layers.block.PostNormBlock) with two contexts in the place of one."""

    def __init__(
        self, width: int, heads: int, hidden: int, context_width: int, merge: bool = False, dropout: float = 0.0,
        eps: float = 1e-12, activation: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps)
        self.cross = TwinCrossAttention(width, heads, context_width, merge)
        self.cross_norm = nn.LayerNorm(width, eps)
        self.feedforward = FeedForward(width, hidden, activation=activation)
        self.norm2 = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tokens, contexts: tuple[Tokens, ...]) -> Tokens:
        tokens = (tokens + self.attention(tokens).map(self.dropout)).map(self.norm1)
        tokens = (tokens + self.cross(tokens, contexts).map(self.dropout)).map(self.cross_norm)
        return (tokens + tokens.map(self.feedforward).map(self.dropout)).map(self.norm2)
