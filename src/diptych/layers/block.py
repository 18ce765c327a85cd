"""The transformer block, in the two orders in which papers normalise."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.layers.attention import Causal, CrossAttention, SelfAttention
from diptych.layers.cache import Cache
from diptych.layers.feedforward import FeedForward
from diptych.tokens import Tokens


class PreNormBlock(nn.Module):
    """Self-attention and a feed-forward network, each on normalised tokens and added back (ViT, figure 1)."""

    def __init__(
        self, width: int, heads: int, hidden: int, eps: float = 1e-6, dropout: float = 0.0,
        activation: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.feedforward = FeedForward(width, hidden, dropout, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tokens,
        allowed: Bool[Tensor, "*b n m"] | Causal | None = None, bias: Float[Tensor, "h n m"] | None = None,
        cache: Cache | None = None,
    ) -> Tokens:  # fmt: skip
        attended = self.attention(tokens.map(self.norm1), allowed, bias, cache)
        tokens = tokens + attended.map(self.dropout)
        return tokens + tokens.map(self.norm2).map(self.feedforward).map(self.dropout)


class PostNormBlock(nn.Module):
    """BERT's block: each part is added to what it read, and the sum normalised (Vaswani et al. 2017, figure 1).

    With `context_width` it is a decoder's or a fusion encoder's: between the two it attends to a context of that width.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, eps: float = 1e-12, dropout: float = 0.0,
        context_width: int | None = None, activation: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps)
        self.cross = None if context_width is None else CrossAttention(width, heads, context_width)
        self.cross_norm = None if context_width is None else nn.LayerNorm(width, eps)
        self.feedforward = FeedForward(width, hidden, activation=activation)
        self.norm2 = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tokens, context: Tokens | None = None,
        allowed: Bool[Tensor, "*b n m"] | Causal | None = None, cache: Cache | None = None,
    ) -> Tokens:  # fmt: skip
        """Without a `context`, attention to one is left out (BLIP's text encoder reads text alone so)."""
        tokens = (tokens + self.attention(tokens, allowed, None, cache).map(self.dropout)).map(self.norm1)
        if context is not None:
            if self.cross is None or self.cross_norm is None:
                raise ValueError("this block was built without attention to a context (context_width)")
            tokens = (tokens + self.cross(tokens, context).map(self.dropout)).map(self.cross_norm)
        return (tokens + tokens.map(self.feedforward).map(self.dropout)).map(self.norm2)
