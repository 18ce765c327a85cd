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
from diptych.modules.embeddings import PlacelessRegionEmbedding, TextEmbedding
from diptych.modules.fusion import Concatenate
from diptych.modules.heads import Match, Vocabulary
from diptych.modules.init import init_transformer
from diptych.modules.pool import Pooler
from diptych.modules.tokens import Pair, Tokens


class VisualBERT(nn.Module):
    """`features`: the width of the detector's features."""

    def __init__(
        self,
        width: int = 768, depth: int = 12, heads: int = 12, hidden: int = 3072, features: int = 2048,
        vocabulary: int = 30522, text_length: int = 512, dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.width, self.vocabulary = width, vocabulary
        self.words = TextEmbedding(vocabulary, text_length, width, dropout=dropout)
        self.regions: nn.Module = PlacelessRegionEmbedding(features, width, self.words.norm, dropout)
        blocks = nn.ModuleList(PostNormBlock(width, heads, hidden, dropout=dropout) for _ in range(depth))
        self.transformer = Concatenate(blocks, nn.Identity(), Pooler(width))
        self.apply(init_transformer)

    def encode_text(self, text: Text) -> Tokens:
        return self.words(text)

    def encode_image(self, image: Regions) -> Tokens:
        return self.regions(image)

    def fuse(self, text: Tokens, image: Tokens) -> Pair:
        return self.transformer(text, image)

    def heads(self) -> nn.ModuleDict:
        """Masked words, and whether the sentence belongs to the image (section 3.3)."""
        words = Vocabulary(self.width, self.vocabulary, tied=self.words.word)
        return nn.ModuleDict({"match": Match(self.width), "words": words}).apply(init_transformer)
