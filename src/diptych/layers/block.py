"""The transformer block."""

from __future__ import annotations

from torch import nn

from diptych.layers.attention import SelfAttention
from diptych.layers.feedforward import FeedForward
from diptych.tokens import Tokens


class PreNormBlock(nn.Module):
    """Self-attention and a feed-forward network, each on normalised tokens and added back (ViT, figure 1)."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float = 1e-6, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.feedforward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tokens) -> Tokens:
        tokens = tokens + self.attention(tokens.map(self.norm1)).map(self.dropout)
        return tokens + tokens.map(self.norm2).map(self.feedforward).map(self.dropout)
