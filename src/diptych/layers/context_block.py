"""A block that looks at another sequence."""

from __future__ import annotations

from torch import nn

from diptych.layers.attention import CrossAttention
from diptych.layers.feedforward import FeedForward
from diptych.tokens import Tokens


class PreNormContextBlock(nn.Module):
    """Attention to a context and a feed-forward network, each on normalised tokens and added back; the context, which has
    the tokens' width, is normalised too (CoCa's multimodal decoder, as open_clip builds it).
    """

    def __init__(self, width: int, heads: int, hidden: int, eps: float, activation: nn.Module | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.context_norm = nn.LayerNorm(width, eps)
        self.attention = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.feedforward = FeedForward(width, hidden, activation=activation)

    def forward(self, tokens: Tokens, context: Tokens) -> Tokens:
        tokens = tokens + self.attention(tokens.map(self.norm1), context.map(self.context_norm))
        return tokens + tokens.map(self.norm2).map(self.feedforward)
