"""VisualBERT: A Simple and Performant Baseline for Vision and Language (Li et al., 2019), figure 2.

Words are embedded as in BERT; region features are projected to the same width and get a type embedding of their own;
one BERT encodes both. UNITER (Chen et al., ECCV 2020) also embeds the boxes: ``VisualBERT(config, InputEmbeddings(
image=lambda dim, _: RegionEmbedding(config.feature_dim, dim)))`` (with ViLBERT's five numbers of a box and one norm of
the sum; UNITER has seven numbers and one more norm of each part).

Differs: regions have one learned type embedding; the official code adds two that are the same for all of them (a
segment's, and position 0's). An image has one caption; pre-training on COCO has two. Attention has no dropout of its
own.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Regions, Text
from diptych.models.visualbert.config import VisualBERTConfig
from diptych.modules.block import PostNormBlock
from diptych.modules.embeddings import RegionEmbeddingWithoutPosition, TextEmbedding, word_table
from diptych.modules.fusion import ConcatFusion
from diptych.modules.heads import ITMHead, MLMHead
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.pool import Pooler
from diptych.modules.tokens import FusedTokens, Tokens


class VisualBERT(nn.Module):
    """One BERT over word embeddings and projected region features."""

    def __init__(self, config: VisualBERTConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        dim, dropout = config.dim, config.dropout
        self.dim, self.vocab_size = dim, config.vocab_size
        self.words = embedders.build_text(dim) or TextEmbedding(
            config.vocab_size, config.text_length, dim, dropout=dropout, word=embedders.build_word(dim)
        )
        norm = self.words.norm if isinstance(self.words, TextEmbedding) else nn.LayerNorm(dim, 1e-12)
        self.regions = embedders.build_image(dim) or RegionEmbeddingWithoutPosition(
            config.feature_dim, dim, norm, dropout, embedders.feature_dropout
        )
        blocks = nn.ModuleList(
            PostNormBlock(dim, config.num_heads, config.mlp_dim, dropout=dropout) for _ in range(config.depth)
        )
        self.transformer = ConcatFusion(blocks, nn.Identity(), Pooler(dim))
        self.apply(init_transformer)

    def forward(self, image: Regions, text: Text) -> FusedTokens:
        """Both modalities after the transformer, pooled from the text's [CLS] token."""
        return self.fuse(self.encode_text(text), self.encode_image(image))

    def encode_text(self, text: Text) -> Tokens:
        """Word embeddings with positions, before the transformer."""
        return self.words(text)

    def encode_image(self, image: Regions) -> Tokens:
        """Projected region features, before the transformer."""
        return self.regions(image)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Both modalities through the transformer as one sequence."""
        return self.transformer(text, image)

    def pooled_pair(self, text: Tokens, image: Tokens) -> Float[Tensor, "b d"]:
        """The pooled vector that `fuse` gives; no other token is computed in the last block."""
        return self.transformer.pooled(text, image)

    def pretraining_heads(self) -> nn.ModuleDict:
        """MLM and sentence-image prediction (section 3.3)."""
        words = MLMHead(self.dim, self.vocab_size, tied=word_table(self.words))
        return nn.ModuleDict({"itm": ITMHead(self.dim), "mlm": words}).apply(init_transformer)
