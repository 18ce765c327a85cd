"""Two streams that look at each other (Lu et al., ViLBERT, NeurIPS 2019, figure 2b).

A text that meets two images at once: attention to each, and the two answers as one.

Fusion by messengers: of one sequence only the class token goes to meet the other.

Single-stream fusion: one sequence of both modalities through one transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from diptych.modules.attention import CrossAttention, SelfAttention
from diptych.modules.block import FeedForward
from diptych.modules.tokens import FusedTokens, Tokens


class CrossBlock(nn.Module):
    """One half of a co-attention: attention to the other stream, then a feed-forward network, each added and normalised.

    `inner`: the width that all attention heads have together.
    """

    def __init__(
        self, dim: int, context_dim: int, num_heads: int, attention_dim: int, mlp_dim: int, eps: float = 1e-12, dropout: float = 0.0
    ):  # fmt: skip
        super().__init__()
        self.attention = CrossAttention(dim, num_heads, context_dim, attention_dim)
        self.norm1 = nn.LayerNorm(dim, eps)
        self.feedforward = FeedForward(dim, mlp_dim)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tokens, context: Tokens) -> Tokens:
        tokens = (tokens + self.attention(tokens, context).map(self.dropout)).map(self.norm1)
        return (tokens + tokens.map(self.feedforward).map(self.dropout)).map(self.norm2)


class CoAttentionLayer(nn.Module):
    """A co-attentional layer: each stream attends to what the other was before it (figure 2b)."""

    def __init__(self, text: CrossBlock, image: CrossBlock):
        super().__init__()
        self.text, self.image = text, image

    def forward(self, text: Tokens, image: Tokens) -> tuple[Tokens, Tokens]:
        return self.text(text, image), self.image(image, text)


class CoAttentionFusion(nn.Module):
    """A stream of blocks for each modality, which meet on the way; the pooler reads both first tokens.

    `schedule`: for each meeting, how many text blocks and how many image blocks come before it. What is left of either
    stream runs behind the last one. Raises ValueError where the schedule runs backwards or past the streams' ends.
    """

    def __init__(
        self,
        text: nn.ModuleList,
        image: nn.ModuleList,
        meetings: nn.ModuleList,
        schedule: Sequence[tuple[int, int]],
        pooler: nn.Module,
    ):
        super().__init__()
        stops = [(0, 0), *schedule, (len(text), len(image))]
        if len(meetings) != len(schedule) or any(a[0] > b[0] or a[1] > b[1] for a, b in pairwise(stops)):
            raise ValueError(
                f"{len(meetings)} meetings of {len(text)} and {len(image)} blocks cannot run as {schedule}"
            )
        self.text, self.image, self.meetings, self.pooler = text, image, meetings, pooler
        self.schedule = tuple(schedule)

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through its own blocks, without meeting the other."""
        blocks = self.text if tokens.layout.spans[0].modality == "text" else self.image
        for block in blocks:
            tokens = block(tokens)
        return tokens

    def forward(self, text: Tokens, image: Tokens) -> FusedTokens:
        texts, images = iter(self.text), iter(self.image)
        before = (0, 0)
        for meeting, stop in zip(self.meetings, self.schedule, strict=True):
            for _ in range(stop[0] - before[0]):
                text = next(texts)(text)
            for _ in range(stop[1] - before[1]):
                image = next(images)(image)
            text, image = meeting(text, image)
            before = stop
        for block in texts:
            text = block(text)
        for block in images:
            image = block(image)
        return FusedTokens(text, image, self.pooler(text.first(), image.first()))


class DualImageCrossAttention(nn.Module):
    """Attention to two contexts, with weights of its own for each; the mean of both, or with `merge` a linear of the two
    side by side (BLIP's form for NLVR2: section 5.4, figure 5 b).
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int, merge: bool = False):
        super().__init__()
        self.first, self.second = (CrossAttention(dim, num_heads, context_dim) for _ in range(2))
        self.merge = nn.Linear(2 * dim, dim) if merge else None

    def forward(self, tokens: Tokens, contexts: tuple[Tokens, ...]) -> Tokens:
        first, second = contexts
        a, b = self.first(tokens, first), self.second(tokens, second)
        if self.merge is None:
            return (a + b).map(lambda x: x / 2)
        return Tokens(self.merge(torch.cat([a.values, b.values], -1)), tokens.layout)


class DualImageBlock(nn.Module):
    """BERT's block (layers.block.PostNormBlock) with two contexts in the place of one."""

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, context_dim: int, merge: bool = False, dropout: float = 0.0,
        eps: float = 1e-12, activation: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.attention = SelfAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim, eps)
        self.cross = DualImageCrossAttention(dim, num_heads, context_dim, merge)
        self.cross_norm = nn.LayerNorm(dim, eps)
        self.feedforward = FeedForward(dim, mlp_dim, activation=activation)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tokens, contexts: tuple[Tokens, ...]) -> Tokens:
        tokens = (tokens + self.attention(tokens).map(self.dropout)).map(self.norm1)
        tokens = (tokens + self.cross(tokens, contexts).map(self.dropout)).map(self.cross_norm)
        return (tokens + tokens.map(self.feedforward).map(self.dropout)).map(self.norm2)


class ClassTokenCrossAttention(nn.Module):
    """The class token alone asks; it and all others answer (CrossViT, section 3.3, equations 3 to 5). No feed-forward."""

    def __init__(self, dim: int, num_heads: int, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.attention = CrossAttention(dim, num_heads)

    def forward(self, tokens: Tokens) -> Tokens:
        """The class tokens alone."""
        cls = tokens.select(name="cls")
        return cls + self.attention(cls.map(self.norm), tokens.map(self.norm))


class CrossScaleFusion(nn.Module):
    """A class token is taken to the other sequence's width, reads its patches, and comes back among its own (figure 4).

    It keeps nothing of what it was but through that way: there is no shortcut around it. From the second of `depth`
    blocks on there is nobody left to read but itself, as in the official code.
    """

    def __init__(self, dim: int, other: int, num_heads: int, depth: int = 1, eps: float = 1e-6):
        super().__init__()
        self.out = nn.Sequential(nn.LayerNorm(dim, eps), nn.GELU(), nn.Linear(dim, other))
        self.layers = nn.ModuleList(ClassTokenCrossAttention(other, num_heads, eps) for _ in range(depth))
        self.back = nn.Sequential(nn.LayerNorm(other, eps), nn.GELU(), nn.Linear(other, dim))

    def forward(self, own: Tokens, other: Tokens) -> Tokens:
        """`own`, its class token back from `other`."""
        messenger = Tokens.concat(own.select(name="cls").map(self.out), other.select(name="patches"))
        for layer in self.layers:
            messenger = layer(messenger)
        return Tokens.concat(messenger.map(self.back), own.select(name="patches"))


class ConcatFusion(nn.Module):
    """Text tokens, then image tokens, through the same blocks and a final norm; read at the first text token (ViLT, figure 3)."""

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, pooler: nn.Module):
        super().__init__()
        self.blocks, self.norm, self.pooler = blocks, norm, pooler

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through the same blocks."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.map(self.norm)

    def forward(self, text: Tokens, image: Tokens) -> FusedTokens:
        both = self.encode_unimodal(Tokens.concat(text, image))
        text, image = both.split(text.layout, image.layout)
        return FusedTokens(text, image, self.pooler(text.first()))
