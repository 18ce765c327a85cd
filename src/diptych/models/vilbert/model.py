"""ViLBERT: Pretraining Task-Agnostic Visiolinguistic Representations (Lu et al., NeurIPS 2019), figure 1; with task tokens
12-in-1: Multi-Task Vision and Language Representation Learning (Lu et al., CVPR 2020).

A BERT reads the words, a narrower stack the regions that a detector saw; at given layers each looks at the other.

Differs from the paper, as the official code: both streams' first tokens go through a linear layer and ReLU before they are
multiplied. Differs from the official code: `q_dense1` and `q_dense2` of every co-attention, which nothing reads there, are
left out, and so is the gate that `dynamic_attention` would add; of the two logits of a match the second means that they
belong together, there the first; attention has no dropout of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from diptych.batch import Regions, Text
from diptych.modules.block import PostNormBlock
from diptych.modules.embeddings import RegionEmbedding, TextEmbedding
from diptych.modules.fusion import CoAttentionFusion, CoAttentionLayer, CrossBlock
from diptych.modules.heads import ITMHead, MLMHead, RegionHead
from diptych.modules.init import init_transformer
from diptych.modules.pool import ProductPooler
from diptych.modules.tokens import FusedTokens, Span, Tokens

SCHEDULE = ((6, 0), (7, 1), (8, 2), (9, 3), (10, 4), (11, 5))


class ViLBERT(nn.Module):
    """`schedule`: for each meeting of the streams, how many text blocks and how many image blocks come before it.

    `features`: the width of the detector's features; `region_targets`: what masked regions are asked for, its classes or
    its features. `meeting_width`, `meeting_heads`: of the co-attentions, and the width of the summary that heads read.
    `tasks`: how many task tokens there are (12-in-1: 20); 0: none.
    """

    def __init__(
        self,
        dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072,
        image_dim: int = 1024, image_depth: int = 6, image_num_heads: int = 8, image_mlp_dim: int = 1024,
        coattention_dim: int = 1024, coattention_num_heads: int = 8, schedule: Sequence[tuple[int, int]] = SCHEDULE,
        feature_dim: int = 2048, num_region_targets: int = 1601, vocab_size: int = 30522, text_length: int = 512,
        tasks: int = 0, dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.dim, self.image_dim, self.pooled = dim, image_dim, coattention_dim
        self.num_region_targets, self.vocab_size = num_region_targets, vocab_size
        self.words = TextEmbedding(vocab_size, text_length, dim, dropout=dropout)
        self.task = nn.Embedding(tasks, dim) if tasks else None
        self.regions = RegionEmbedding(feature_dim, image_dim, dropout=dropout)

        def block(width: int, heads: int, hidden: int) -> PostNormBlock:
            return PostNormBlock(width, heads, hidden, dropout=dropout)

        def half(width: int, other: int, hidden: int) -> CrossBlock:
            return CrossBlock(width, other, coattention_num_heads, coattention_dim, hidden, dropout=dropout)

        self.streams = CoAttentionFusion(
            nn.ModuleList(block(dim, num_heads, mlp_dim) for _ in range(depth)),
            nn.ModuleList(block(image_dim, image_num_heads, image_mlp_dim) for _ in range(image_depth)),
            nn.ModuleList(
                CoAttentionLayer(half(dim, image_dim, mlp_dim), half(image_dim, dim, image_mlp_dim)) for _ in schedule
            ),
            schedule,
            ProductPooler(dim, image_dim, coattention_dim, dropout),
        )
        self.apply(init_transformer)

    def encode_text(self, text: Text) -> Tokens:
        """The words' embeddings; in 12-in-1 the task's stands behind [CLS], and has no position. Raises ValueError."""
        words = self.words(text)
        if (self.task is None) != (text.task is None):
            raise ValueError(
                "a text says which task it is for exactly where the model has task tokens (tasks, Text.task)"
            )
        if self.task is None or text.task is None:
            return words
        real = torch.ones(len(text), 1, dtype=torch.bool, device=text.mask.device)
        task = Tokens.from_padded(self.task(text.task)[:, None], real, Span("text", "task", 1))
        task = task.map(self.words.norm).map(self.words.dropout)
        return Tokens.concat(words.select(name="cls"), task, words.select(name="words"))

    def encode_image(self, image: Regions) -> Tokens:
        """The regions' embeddings. Raises ValueError where the first is not the whole image, which the pooler reads."""
        if not image.has_whole_image:
            raise ValueError("ViLBERT's first region is the whole image: give it Regions.with_whole()")
        return self.regions(image)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        return self.streams(text, image)

    def pretraining_heads(self) -> nn.ModuleDict:
        """What pre-training asks: do they belong together, which word, which region? (figure 3)"""
        heads = nn.ModuleDict(
            {
                "match": ITMHead(self.pooled),
                "words": MLMHead(self.dim, self.vocab_size, tied=self.words.word),
                "regions": RegionHead(self.image_dim, self.num_region_targets),
            }
        )
        return heads.apply(init_transformer)
