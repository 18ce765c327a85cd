"""Fusion of two token sequences.

- Co-attention (two-stream): each modality cross-attends to the other (ViLBERT: Lu et al., NeurIPS 2019, figure 2b).
- Cross-attention: a text attends to an image, which stays as it is (ALBEF, figure 1; BLIP, figure 2).
- Dual image: a text cross-attends to two images, and the two results are merged (NLVR2).
- CrossViT: the class token of one sequence attends to the patches of the other.
- Single-stream: one transformer over the concatenated sequences (ViLT, figure 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.modules.attention import Context, CrossAttention, SelfAttention
from diptych.modules.block import FeedForward, PostNormBlock, PreNormBlock
from diptych.modules.tokens import FusedTokens, Tokens


class CrossBlock(nn.Module):
    """One half of a co-attention layer: cross-attention to the other stream, then a feed-forward network; post-norm.

    `attention_dim`: the width of all attention heads together.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        num_heads: int,
        attention_dim: int,
        mlp_dim: int,
        eps: float = 1e-12,
        dropout: float = 0.0,
    ):
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
    """Co-attentional transformer layer: each stream cross-attends to the other stream's input (ViLBERT, figure 2b)."""

    def __init__(self, text: CrossBlock, image: CrossBlock):
        super().__init__()
        self.text, self.image = text, image

    def forward(self, text: Tokens, image: Tokens) -> tuple[Tokens, Tokens]:
        return self.text(text, image), self.image(image, text)


class CoAttentionFusion(nn.Module):
    """Two-stream fusion: a stack of blocks per modality with co-attention layers between, pooled at both first tokens.

    `schedule`: for each co-attention layer, how many text blocks and image blocks run before it. The remaining blocks
    run after the last layer. Raises ValueError for a schedule that decreases or exceeds the number of blocks.
    """

    def __init__(
        self,
        text: nn.ModuleList,
        image: nn.ModuleList,
        layers: nn.ModuleList,
        schedule: Sequence[tuple[int, int]],
        pooler: nn.Module,
    ):
        super().__init__()
        stops = [(0, 0), *schedule, (len(text), len(image))]
        if len(layers) != len(schedule) or any(a[0] > b[0] or a[1] > b[1] for a, b in pairwise(stops)):
            raise ValueError(
                f"schedule {schedule} does not fit {len(layers)} co-attention layers, {len(text)} text blocks and "
                f"{len(image)} image blocks: it must have an entry per layer, not decrease, and stay within the blocks"
            )
        self.text, self.image, self.meetings, self.pooler = text, image, layers, pooler
        self.schedule = tuple(schedule)

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through its own blocks, without co-attention."""
        blocks = self.text if tokens.layout.spans[0].modality == "text" else self.image
        for block in blocks:
            tokens = block(tokens)
        return tokens

    def forward(self, text: Tokens, image: Tokens) -> FusedTokens:
        text_blocks, image_blocks = iter(self.text), iter(self.image)
        done = (0, 0)
        for coattention, stop in zip(self.meetings, self.schedule, strict=True):
            for _ in range(stop[0] - done[0]):
                text = next(text_blocks)(text)
            for _ in range(stop[1] - done[1]):
                image = next(image_blocks)(image)
            text, image = coattention(text, image)
            done = stop
        for block in text_blocks:
            text = block(text)
        for block in image_blocks:
            image = block(image)
        return FusedTokens(text, image, self.pooler(text.first(), image.first()))


def pooled_cross_attention(blocks: Sequence[PostNormBlock], text: Tokens, context: Context) -> Float[Tensor, "b d"]:
    """The class token of each text after `blocks`, which cross-attend to `context`.

    `text`: after the first block's self-attention, which depends on the text alone (`PostNormBlock.self_attend`). The
    last block computes the class token only. Equals the class token after all of `blocks`.
    """
    last = blocks[-1]
    for block, following in pairwise(blocks):
        text = block.after_self_attention(text, context)
        if following is last:
            text = last.self_attend_from(text.select(name="cls"), text)
        else:
            text = following.self_attend(text)
    return last.after_self_attention(text.select(name="cls"), context).first()


class DualImageCrossAttention(nn.Module):
    """Cross-attention to two contexts, each with its own weights; the two results are averaged.

    With `merge` a linear layer of the concatenated results replaces the mean (BLIP's form for NLVR2: section
    5.4, figure 5 b).
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int, merge: bool = False):
        super().__init__()
        self.first, self.second = (CrossAttention(dim, num_heads, context_dim) for _ in range(2))
        self.merge = nn.Linear(2 * dim, dim) if merge else None

    def forward(self, tokens: Tokens, contexts: tuple[Tokens, ...]) -> Tokens:
        first, second = contexts
        attended1, attended2 = self.first(tokens, first), self.second(tokens, second)
        if self.merge is None:
            return (attended1 + attended2).map(lambda x: x / 2)
        return Tokens(self.merge(torch.cat([attended1.values, attended2.values], -1)), tokens.layout)


class DualImageBlock(nn.Module):
    """BERT's block (modules.block.PostNormBlock) with cross-attention to two contexts."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        context_dim: int,
        merge: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-12,
        activation: nn.Module | None = None,
    ):
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
    """Attention of the class token (query) to all tokens (keys and values), without a feed-forward network.

    Source: CrossViT (Chen et al. 2021), section 3.3, equations 3 to 5.
    """

    def __init__(self, dim: int, num_heads: int, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.attention = CrossAttention(dim, num_heads)

    def forward(self, tokens: Tokens) -> Tokens:
        """The updated class tokens."""
        cls = tokens.select(name="cls")
        return cls + self.attention(cls.map(self.norm), tokens.map(self.norm))


class CrossScaleFusion(nn.Module):
    """CrossViT's fusion: the class token, projected to the other branch's width, attends to its patches (figure 4).

    It is then projected back and put before its own branch's patches; there is no residual connection around this path.
    From the second of `depth` layers on, the class token attends to itself only, as in the official code.
    """

    def __init__(self, dim: int, other: int, num_heads: int, depth: int = 1, eps: float = 1e-6):
        super().__init__()
        self.out = nn.Sequential(nn.LayerNorm(dim, eps), nn.GELU(), nn.Linear(dim, other))
        self.layers = nn.ModuleList(ClassTokenCrossAttention(other, num_heads, eps) for _ in range(depth))
        self.back = nn.Sequential(nn.LayerNorm(other, eps), nn.GELU(), nn.Linear(other, dim))

    def forward(self, tokens: Tokens, other: Tokens) -> Tokens:
        """`tokens` with the class token fused with the patches of `other`."""
        cls = Tokens.concat(tokens.select(name="cls").map(self.out), other.select(name="patches"))
        for layer in self.layers:
            cls = layer(cls)
        return Tokens.concat(cls.map(self.back), tokens.select(name="patches"))


class ConcatFusion(nn.Module):
    """Single-stream fusion: text, then image tokens, through one transformer; pooled at the first text token.

    Source: ViLT, figure 3.
    """

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, pooler: nn.Module):
        super().__init__()
        self.blocks, self.norm, self.pooler = blocks, norm, pooler

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through the same blocks and final norm."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.map(self.norm)

    def forward(self, text: Tokens, image: Tokens) -> FusedTokens:
        both = self.encode_unimodal(Tokens.concat(text, image))
        text, image = both.split(text.layout, image.layout)
        return FusedTokens(text, image, self.pooler(text.first()))

    def pooled(self, text: Tokens, image: Tokens) -> Float[Tensor, "b d"]:
        """The pooled vector of `forward`: the last block computes the first text token only."""
        tokens = Tokens.concat(text, image)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last = cast(PreNormBlock | PostNormBlock, self.blocks[-1])
        first = last.forward_from(tokens.select(name="cls", modality="text"), tokens)
        return self.pooler(first.map(self.norm).first())
