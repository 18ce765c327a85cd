"""Fusion by messengers: of one sequence only the class token goes to meet the other."""

from __future__ import annotations

from torch import nn

from diptych.layers.attention import CrossAttention
from diptych.tokens import Tokens


class ClassAttention(nn.Module):
    """The class token alone asks; it and all others answer (CrossViT, section 3.3, equations 3 to 5). No feed-forward."""

    def __init__(self, width: int, heads: int, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps)
        self.attention = CrossAttention(width, heads)

    def forward(self, tokens: Tokens) -> Tokens:
        """The class tokens alone."""
        cls = tokens.by_span(name="cls")
        return cls + self.attention(cls.map(self.norm), tokens.map(self.norm))


class ClassExchange(nn.Module):
    """A class token is taken to the other sequence's width, reads its patches, and comes back among its own (figure 4).

    It keeps nothing of what it was but through that way: there is no shortcut around it. From the second of `depth`
    blocks on there is nobody left to read but itself, as in the official code.
    """

    def __init__(self, width: int, other: int, heads: int, depth: int = 1, eps: float = 1e-6):
        super().__init__()
        self.out = nn.Sequential(nn.LayerNorm(width, eps), nn.GELU(), nn.Linear(width, other))
        self.layers = nn.ModuleList(ClassAttention(other, heads, eps) for _ in range(depth))
        self.back = nn.Sequential(nn.LayerNorm(other, eps), nn.GELU(), nn.Linear(other, width))

    def forward(self, own: Tokens, other: Tokens) -> Tokens:
        """`own`, its class token back from `other`."""
        messenger = Tokens.join(own.by_span(name="cls").map(self.out), other.by_span(name="patches"))
        for layer in self.layers:
            messenger = layer(messenger)
        return Tokens.join(messenger.map(self.back), own.by_span(name="patches"))
