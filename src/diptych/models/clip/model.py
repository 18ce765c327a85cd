"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., ICML 2021), figures 1
and 3.

A ViT and a causal text transformer. Nothing fuses them: an image and a text are compared by the cosine of two vectors,
projected from the image's class token and from the text's last token, [EOS].

Differs: the official code takes [EOS] to be the largest id of the text; here it is the last real token, so that texts
of any tokenizer can be encoded. Vision blocks are initialised by the rule that the official code has for text (it
leaves PyTorch's defaults there), and all biases start at zero. Position grids are resized as open_clip does; the
official code does not resize them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.models.clip.config import CLIPConfig
from diptych.modules.attention import Causal
from diptych.modules.block import PreNormBlock, activation_named
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.heads import ITCHead, LogScale
from diptych.modules.init import init_blocks
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.pool import last_token
from diptych.modules.position import check_text_length, resize_bicubic
from diptych.modules.tokens import Span, Tokens

EPS = 1e-5


class PatchTower(nn.Module):
    """A ViT that projects patches without bias and normalises tokens before the first block.

    `patches`: image embedding instead of its own.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        patch_size: int,
        grid: tuple[int, int],
        activation: str,
        eps: float = EPS,
        patches: nn.Module | None = None,
    ):
        super().__init__()
        self.patches = patches or patches_without_bias(dim, patch_size, grid)
        self.norm = nn.LayerNorm(dim, eps)
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, num_heads, mlp_dim, eps, activation=activation_named(activation)) for _ in range(depth)
        )
        init_blocks(self.blocks, dim)
        for name in ("cls", "position") if patches is None else ():
            nn.init.normal_(self.patches.get_parameter(name), std=dim**-0.5)

    def forward(self, image: Image | Regions) -> Tokens:
        tokens = self.patches(image).map(self.norm)  # b (1 + patches) dim
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def patches_without_bias(dim: int, patch_size: int, grid: tuple[int, int]) -> PatchEmbedding:
    """A patch embedding whose projection has no bias."""
    patches = PatchEmbedding(dim, patch_size, grid, resize_bicubic)
    patches.project = nn.Linear(3 * patch_size * patch_size, dim, bias=False)
    return patches


class TextTower(nn.Module):
    """A transformer in which each token attends to itself and to those before it.

    `word`: word embeddings instead of its own.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        vocab_size: int,
        length: int,
        activation: str,
        eps: float = EPS,
        word: Any = None,  # an nn.Module from token ids to vectors, instead of an nn.Embedding
    ):
        super().__init__()
        self.word = word or nn.Embedding(vocab_size, dim)
        self.position = nn.Parameter(torch.empty(length, dim))
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, num_heads, mlp_dim, eps, activation=activation_named(activation)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps)
        init_blocks(self.blocks, dim)
        if isinstance(self.word, nn.Embedding):
            nn.init.normal_(self.word.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)

    def forward(self, text: Text) -> Tokens:
        """Normalised tokens. Raises ValueError if a text is longer than the position table."""
        text.check()
        n = text.ids.shape[1]
        check_text_length(n, len(self.position))
        tokens = Tokens.from_padded(self.word(text.ids) + self.position[:n], text.mask, Span("text", "words", n))
        for block in self.blocks:
            tokens = block(tokens, Causal())
        return tokens.map(self.norm)  # b n dim


class CLIP(nn.Module):
    """An image tower and a text tower (figure 1); projections to the joint space are a head (`pretraining_heads`)."""

    def __init__(self, config: CLIPConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        self.dim, self.text_dim, self.embed_dim = config.dim, config.text_dim, config.embed_dim
        self.image = PatchTower(
            config.dim,
            config.depth,
            config.num_heads,
            config.mlp_dim,
            config.patch_size,
            config.grid,
            config.activation,
            config.eps,
            embedders.build_image(config.dim, config.grid),
        )
        self.image_norm = nn.LayerNorm(config.dim, config.eps)
        self.text = TextTower(
            config.text_dim,
            config.text_depth,
            config.text_num_heads,
            config.text_mlp_dim,
            config.vocab_size,
            config.text_length,
            config.text_activation or config.activation,
            config.text_eps,
            embedders.build_word(config.text_dim),
        )

    def forward(self, image: Image, text: Text) -> tuple[Float[Tensor, "images d"], Float[Tensor, "texts e"]]:
        """Pooled features of the images and of the texts, before the projections to the joint space."""
        (image_features,) = self.pooled_features(self.encode_image(image))  # images dim
        (text_features,) = self.pooled_features(self.encode_text(text))  # texts text_dim
        return image_features, text_features

    def encode_image(self, image: Image | Regions) -> Tokens:
        """The class token and the patches after the image tower, normalised."""
        return self.image(image).map(self.image_norm)

    def encode_text(self, text: Text) -> Tokens:
        """The tokens after the text tower, normalised."""
        return self.text(text)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """An image's class token; a text's last token."""
        return (tokens.first() if tokens.layout.spans[0].modality == "image" else last_token(tokens),)

    def pretraining_heads(self) -> nn.ModuleDict:
        """The two projections of figure 3, without bias, and the scale of their cosines, at most 100 (section 2.5)."""
        return nn.ModuleDict({"itc": contrast_head(self.dim, self.text_dim, self.embed_dim)})


def contrast_head(image_dim: int, text_dim: int, embed_dim: int) -> ITCHead:
    """Projections to the joint space without bias, std 1 / sqrt(input width); cosines are scaled by at most 100."""
    contrast = ITCHead(image_dim, text_dim, embed_dim, LogScale(maximum=100), bias=False)
    for projection in (contrast.image, contrast.text):
        nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
    return contrast
