"""VisualBERT: A Simple and Performant Baseline for Vision and Language (Li et al., 2019), figure 2: one stream for words
and regions.

Words as in BERT; regions are projected to the same width, told apart by a vector of their own, and one BERT reads both.
UNITER (Chen et al., ECCV 2020) also tells where they lie: ``model.regions = RegionEmbedding(features, width)`` (with ViLBERT's
five numbers of a box and one norm of the sum; there seven, and a norm more of either part).

Differs: regions have one learned vector, where the official code adds two that are the same for all of them (a segment's,
and position 0's); one caption stands beside an image, where pre-training on COCO shows two; attention has no dropout of its
own.
"""

from __future__ import annotations

from torch import nn

from diptych.batch import Regions, Text
from diptych.modules.block import PostNormBlock
from diptych.modules.embeddings import RegionEmbeddingWithoutPosition, TextEmbedding
from diptych.modules.fusion import ConcatFusion
from diptych.modules.heads import ITMHead, MLMHead
from diptych.modules.init import init_transformer
from diptych.modules.pool import Pooler
from diptych.modules.tokens import FusedTokens, Tokens


class VisualBERT(nn.Module):
    """`features`: the width of the detector's features."""

    def __init__(
        self,
        dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072, feature_dim: int = 2048,
        vocab_size: int = 30522, text_length: int = 512, dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.dim, self.vocab_size = dim, vocab_size
        self.words = TextEmbedding(vocab_size, text_length, dim, dropout=dropout)
        self.regions: nn.Module = RegionEmbeddingWithoutPosition(feature_dim, dim, self.words.norm, dropout)
        blocks = nn.ModuleList(PostNormBlock(dim, num_heads, mlp_dim, dropout=dropout) for _ in range(depth))
        self.transformer = ConcatFusion(blocks, nn.Identity(), Pooler(dim))
        self.apply(init_transformer)

    def encode_text(self, text: Text) -> Tokens:
        return self.words(text)

    def encode_image(self, image: Regions) -> Tokens:
        return self.regions(image)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        return self.transformer(text, image)

    def pretraining_heads(self) -> nn.ModuleDict:
        """Masked words, and whether the sentence belongs to the image (section 3.3)."""
        words = MLMHead(self.dim, self.vocab_size, tied=self.words.word)
        return nn.ModuleDict({"match": ITMHead(self.dim), "words": words}).apply(init_transformer)
