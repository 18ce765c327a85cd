"""ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision (Kim et al., ICML 2021), figure 3.

Text is embedded as BERT does, image patches linearly as ViT does; each gets a modality type, and one ViT reads both.

Differs from the paper, as the official code: text carries two type vectors (BERT's own and the modality's) and is normalised
before the modality's is added, and the masked word head is BERT's without its tie to the word embedding. Differs from the
official code: a full image's patches stay in raster order; the shuffle there is a by-product of how padding is drawn.
"""

from __future__ import annotations

import torch
from torch import nn

from diptych.batch import Image, Regions, Text
from diptych.modules.block import PreNormBlock, activation_named
from diptych.modules.embeddings import PatchEmbedding, TextEmbedding
from diptych.modules.fusion import ConcatFusion
from diptych.modules.heads import ITMHead, MLMHead
from diptych.modules.init import init_transformer
from diptych.modules.pool import Pooler
from diptych.modules.position import resize_aligned
from diptych.modules.tokens import FusedTokens, Tokens


class ViLT(nn.Module):
    """`grid`: rows and columns of the learned position grid. `images`: how many images a sample may have (NLVR2: two).
    `eps`: of the transformer's LayerNorms; `text_eps`: of the text embedding's and the word head's.
    """

    def __init__(
        self,
        dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072, patch_size: int = 32,
        grid: tuple[int, int] = (12, 12), vocab_size: int = 30522, text_length: int = 40, num_images: int = 1,
        dropout: float = 0.1, activation: str = "gelu", eps: float = 1e-6, text_eps: float = 1e-12,
    ):  # fmt: skip
        super().__init__()
        self.dim, self.vocab_size, self.activation, self.text_eps = dim, vocab_size, activation, text_eps
        self.words = TextEmbedding(vocab_size, text_length, dim, eps=text_eps, dropout=dropout)
        self.patches = PatchEmbedding(dim, patch_size, grid, resize_aligned, dropout=dropout)
        self.modality = nn.Embedding(1 + num_images, dim)  # row 0: text; row 1 + slot: that image
        blocks = nn.ModuleList(
            PreNormBlock(dim, num_heads, mlp_dim, eps, dropout, activation_named(activation)) for _ in range(depth)
        )
        self.transformer = ConcatFusion(blocks, nn.LayerNorm(dim, eps), Pooler(dim))
        self.apply(init_transformer)

    def encode_text(self, text: Text) -> Tokens:
        return self.words(text)

    def encode_image(self, image: Image | Regions) -> Tokens:
        return self.patches(image)  # regions, where an embedder of regions has taken the patches' place

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        modality = self.modality(torch.tensor([0, 1 + image.image_index], device=self.modality.weight.device))
        return self.transformer(text.add(modality[0]), image.add(modality[1]))

    def pretraining_heads(self) -> nn.ModuleDict:
        """The two boxes above the transformer in figure 3; word-patch alignment has no weights."""
        words = MLMHead(self.dim, self.vocab_size, self.text_eps, activation=activation_named(self.activation))
        heads = nn.ModuleDict({"match": ITMHead(self.dim), "words": words})
        return heads.apply(init_transformer)
