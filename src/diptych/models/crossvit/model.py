"""CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification (Chen et al., ICCV 2021), figure 2.

Each image at two sizes, in patches of two sizes, with a ViT branch for each. After every stage the class token of each
branch cross-attends to the patches of the other (`modules.fusion.CrossScaleFusion`).

Differs from the paper, as the official code: each projection of a class token to the other branch's width is norm,
GELU, linear. Differs from the official code: no stochastic depth, with which it trains (0.1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image
from diptych.models.crossvit.config import CrossViTConfig
from diptych.modules.block import PreNormBlock
from diptych.modules.embeddings import MultiScalePatchEmbedding
from diptych.modules.fusion import CrossScaleFusion
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.tokens import Tokens

Two = tuple[int, int]


class Stage(nn.Module):
    """A multi-scale encoder: the blocks of each branch, then cross-attention between branches (figure 2, middle)."""

    def __init__(self, dims: Two, num_heads: Two, mlp_dims: Two, depths: Two, exchanges: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(PreNormBlock(dims[i], num_heads[i], mlp_dims[i], 1e-6, dropout) for _ in range(depths[i]))
            for i in (0, 1)
        )
        self.exchange = nn.ModuleList(
            CrossScaleFusion(dims[i], dims[1 - i], num_heads[1 - i], exchanges) for i in (0, 1)
        )

    def forward(self, small: Tokens, large: Tokens) -> tuple[Tokens, Tokens]:
        """The tokens of the small-patch and of the large-patch branch."""
        both = [small, large]
        for i, blocks in enumerate(self.blocks):
            for block in blocks:  # type: ignore[union-attr]  # a ModuleList
                both[i] = block(both[i])
        return self.exchange[0](both[0], both[1]), self.exchange[1](both[1], both[0])


class CrossViT(nn.Module):
    """Two ViT branches that exchange information through their class tokens; a linear classifier for each."""

    def __init__(self, config: CrossViTConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        self.patches = nn.ModuleList(
            embedders.build_image(config.dims[i], (size // patch_size, size // patch_size))
            or MultiScalePatchEmbedding(size, patch_size, config.dims[i], config.stem)
            for i, (size, patch_size) in enumerate(zip(config.image_sizes, config.patch_sizes, strict=True))
        )
        self.stages = nn.ModuleList(
            Stage(config.dims, config.num_heads, config.mlp_dims, (small, large), max(1, exchanges), config.dropout)
            for small, large, exchanges in config.stages
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim, 1e-6) for dim in config.dims)
        self.head = nn.ModuleList(nn.Linear(dim, config.num_classes) for dim in config.dims)
        self.apply(init_transformer)

    def forward(self, image: Image) -> Float[Tensor, "b classes"]:
        """Class logits of each image; see `classify`."""
        return self.classify(image)

    def class_tokens(self, image: Image) -> list[Float[Tensor, "b d"]]:
        """The normalised class token of each branch."""
        small, large = (patches(image) for patches in self.patches)  # b (1 + patches) dims[0], dims[1]
        for stage in self.stages:
            small, large = stage(small, large)
        return [norm(tokens.first()) for norm, tokens in zip(self.norms, (small, large), strict=True)]

    def classify(self, image: Image) -> Float[Tensor, "b classes"]:
        """Class logits of each image: the mean of the branches'."""
        logits = [head(cls) for head, cls in zip(self.head, self.class_tokens(image), strict=True)]
        return torch.stack(logits).mean(0)  # b classes
