"""ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision (Kim et al., ICML 2021), figure 3.

Text is embedded as in BERT, image patches linearly as in ViT; each gets a modality embedding, and one ViT encodes both.

Differs from the paper, as the official code: text carries two type embeddings (BERT's segment and the modality) and is
normalised before the modality's is added, and the MLM head is BERT's without its tie to the word embedding. Differs
from the official code: a full image's patches stay in raster order; the shuffle there is a by-product of how padding is
drawn.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.models.vilt.config import ViLTConfig
from diptych.modules.block import PreNormBlock, activation_named
from diptych.modules.embeddings import PatchEmbedding, TextEmbedding, modality_row
from diptych.modules.fusion import ConcatFusion
from diptych.modules.heads import ITMHead, MLMHead
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.pool import Pooler
from diptych.modules.position import resize_aligned
from diptych.modules.tokens import FusedTokens, Tokens


class ViLT(nn.Module):
    """One transformer over word and patch embeddings."""

    def __init__(self, config: ViLTConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        dim, dropout = config.dim, config.dropout
        self.dim, self.vocab_size = dim, config.vocab_size
        self.activation, self.text_eps = config.activation, config.text_eps
        self.words = embedders.build_text(dim) or TextEmbedding(
            config.vocab_size,
            config.text_length,
            dim,
            eps=config.text_eps,
            dropout=dropout,
            word=embedders.build_word(dim),
        )
        self.patches = embedders.build_image(dim, config.grid) or PatchEmbedding(
            dim, config.patch_size, config.grid, resize_aligned, dropout=dropout
        )
        self.modality = nn.Embedding(1 + config.num_images, dim)  # row 0: text; row 1 + image_index: that image
        blocks = nn.ModuleList(
            PreNormBlock(dim, config.num_heads, config.mlp_dim, config.eps, dropout, activation_named(self.activation))
            for _ in range(config.depth)
        )
        self.transformer = ConcatFusion(blocks, nn.LayerNorm(dim, config.eps), Pooler(dim))
        self.apply(init_transformer)

    def forward(self, image: Image | Regions, text: Text) -> FusedTokens:
        """Both modalities after the transformer, pooled from the text's [CLS] token."""
        return self.fuse(self.encode_text(text), self.encode_image(image))

    def encode_text(self, text: Text) -> Tokens:
        """Word embeddings with positions, before the transformer."""
        return self.words(text)

    def encode_image(self, image: Image | Regions) -> Tokens:
        """The class token and patch embeddings with positions, before the transformer.

        Takes Regions if the image embedding is one of regions.
        """
        return self.patches(image)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Both modalities, each with its modality embedding, through the transformer as one sequence.

        Raises ValueError for an image that `num_images` does not provide for.
        """
        return self.transformer(*self._with_modalities(text, image))

    def pooled_pair(self, text: Tokens, image: Tokens) -> Float[Tensor, "b d"]:
        """The pooled vector that `fuse` gives; no other token is computed in the last block."""
        return self.transformer.pooled(*self._with_modalities(text, image))

    def _with_modalities(self, text: Tokens, image: Tokens) -> tuple[Tokens, Tokens]:
        rows = torch.tensor([0, modality_row(image, self.modality)], device=self.modality.weight.device)
        of_text, of_image = self.modality(rows)  # dim each
        return text.add(of_text), image.add(of_image)

    def pretraining_heads(self) -> nn.ModuleDict:
        """ITM and MLM heads, the two boxes above the transformer in figure 3; word-patch alignment has no weights."""
        words = MLMHead(self.dim, self.vocab_size, self.text_eps, activation=activation_named(self.activation))
        heads = nn.ModuleDict({"itm": ITMHead(self.dim), "mlm": words})
        return heads.apply(init_transformer)
