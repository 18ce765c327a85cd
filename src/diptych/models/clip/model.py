"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., ICML 2021), figures 1 and 3.

A ViT and a causal text transformer, which meet only in the cosine of two vectors: the class token's, and that of the
text's last token, [EOS]. `activation` "quick_gelu" is OpenAI's, "gelu" open_clip's.

Differs: the official code finds [EOS] as the text's largest id, here it is its last real token, so that any tokenizer's
texts are read. Vision blocks are drawn by the rule that the official code keeps for text (it leaves torch's there), and all
biases begin at zero. Position grids are resized as open_clip does; the official code does not resize them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.modules.attention import Causal
from diptych.modules.block import PreNormBlock, activation_named
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.heads import ITCHead, LogScale
from diptych.modules.init import init_blocks
from diptych.modules.pool import last_token
from diptych.modules.position import resize_bicubic
from diptych.modules.tokens import Span, Tokens

EPS = 1e-5


class PatchTower(nn.Module):
    """A ViT whose patches are projected without bias, and whose tokens are normalised before the first block."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, mlp_dim: int, patch_size: int, grid: tuple[int, int], activation: str,
        eps: float = EPS,
    ):  # fmt: skip
        super().__init__()
        self.patches = PatchEmbedding(dim, patch_size, grid, resize_bicubic)
        self.patches.project = nn.Linear(3 * patch_size * patch_size, dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps)
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, num_heads, mlp_dim, eps, activation=activation_named(activation)) for _ in range(depth)
        )
        init_blocks(self.blocks, dim)
        for grown in (self.patches.cls, self.patches.position):
            nn.init.normal_(grown, std=dim**-0.5)

    def forward(self, image: Image | Regions) -> Tokens:
        tokens = self.patches(image).map(self.norm)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class TextTower(nn.Module):
    """A transformer in which each word sees itself and those before it."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, mlp_dim: int, vocab_size: int, length: int, activation: str,
        eps: float = EPS,
    ):  # fmt: skip
        super().__init__()
        self.word = nn.Embedding(vocab_size, dim)
        self.position = nn.Parameter(torch.empty(length, dim))
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, num_heads, mlp_dim, eps, activation=activation_named(activation)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps)
        init_blocks(self.blocks, dim)
        nn.init.normal_(self.word.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)

    def forward(self, text: Text) -> Tokens:
        n = text.ids.shape[1]
        if n > len(self.position):
            raise ValueError(f"text of {n} tokens, but the model has positions for {len(self.position)}")
        tokens = Tokens.from_padded(self.word(text.ids) + self.position[:n], text.mask, Span("text", "words", n))
        for block in self.blocks:
            tokens = block(tokens, Causal())
        return tokens.map(self.norm)


class CLIP(nn.Module):
    """`joint`: the width of the space in which both sides are compared. The defaults are ViT-B/32. `text_activation` empty:
    the same as the image tower's `activation`.
    """

    def __init__(
        self,
        dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072, patch_size: int = 32,
        grid: tuple[int, int] = (7, 7), text_dim: int = 512, text_depth: int = 12, text_num_heads: int = 8,
        text_mlp_dim: int = 2048, vocab_size: int = 49408, text_length: int = 77, embed_dim: int = 512,
        activation: str = "quick_gelu", text_activation: str = "", eps: float = EPS, text_eps: float = EPS,
    ):  # fmt: skip
        super().__init__()
        self.dim, self.text_dim, self.embed_dim = dim, text_dim, embed_dim
        self.image = PatchTower(dim, depth, num_heads, mlp_dim, patch_size, grid, activation, eps)
        self.image_norm = nn.LayerNorm(dim, eps)
        self.text = TextTower(
            text_dim, text_depth, text_num_heads, text_mlp_dim, vocab_size, text_length, text_activation or activation,
            text_eps,
        )  # fmt: skip

    def encode_image(self, image: Image | Regions) -> Tokens:
        return self.image(image).map(self.image_norm)

    def encode_text(self, text: Text) -> Tokens:
        return self.text(text)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """The image's class token; the text's last token."""
        return (tokens.first() if tokens.layout.spans[0].modality == "image" else last_token(tokens),)

    def pretraining_heads(self) -> nn.ModuleDict:
        """The two projections of figure 3, without bias, and the scale of their cosines, at most 100 (section 2.5)."""
        return nn.ModuleDict({"contrast": contrast_head(self.dim, self.text_dim, self.embed_dim)})


def contrast_head(image_dim: int, text_dim: int, embed_dim: int) -> ITCHead:
    """Projections without bias, drawn by the width of what they read; cosines are scaled by 100 at most."""
    contrast = ITCHead(image_dim, text_dim, embed_dim, LogScale(most=100), bias=False)
    for projection in (contrast.image, contrast.text):
        nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
    return contrast
