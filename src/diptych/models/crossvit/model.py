"""CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification (Chen et al., ICCV 2021), figure 2.

One picture at two sizes in patches of two sizes, a ViT for each; after every stage their class tokens change sides.

Differs from the paper, as the official code: each projection of a class token to the other width is norm, GELU, linear.
Differs from the official code: no stochastic depth, which it trains with (0.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image
from diptych.modules.block import PreNormBlock
from diptych.modules.embeddings import MultiScalePatchEmbedding
from diptych.modules.fusion import CrossScaleFusion
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Tokens

Two = tuple[int, int]


class Stage(nn.Module):
    """A multi-scale encoder: each branch's own blocks, then the exchange of class tokens (figure 2, middle)."""

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
        both = [small, large]
        for i, blocks in enumerate(self.blocks):
            for block in blocks:  # type: ignore[union-attr]
                both[i] = block(both[i])
        return self.exchange[0](both[0], both[1]), self.exchange[1](both[1], both[0])


class CrossViT(nn.Module):
    """Pairs hold the branch of small patches, then that of large ones; the defaults are CrossViT-9.

    `stages`: blocks of each branch, and of the exchange, whose 0 is a single one too (it changes but official names).
    `stem`: patches by three convolutions (†).
    """

    def __init__(
        self,
        image_sizes: Two = (240, 224), patch_sizes: Two = (12, 16), dims: Two = (128, 256), num_heads: Two = (4, 4),
        mlp_dims: Two = (384, 768), stages: Sequence[tuple[int, int, int]] = ((1, 3, 0),) * 3, stem: bool = False,
        num_classes: int = 1000, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.patches = nn.ModuleList(
            MultiScalePatchEmbedding(image_sizes[i], patch_sizes[i], dims[i], stem) for i in (0, 1)
        )
        self.stages = nn.ModuleList(
            Stage(dims, num_heads, mlp_dims, (small, large), max(1, exchanges), dropout)
            for small, large, exchanges in stages
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-6) for width in dims)
        self.head = nn.ModuleList(nn.Linear(width, num_classes) for width in dims)
        self.apply(init_transformer)

    def summaries(self, image: Image) -> list[Float[Tensor, "b d"]]:
        """Each branch's class token, normalised."""
        small, large = (patches(image) for patches in self.patches)
        for stage in self.stages:
            small, large = stage(small, large)
        return [norm(tokens.first()) for norm, tokens in zip(self.norms, (small, large), strict=True)]

    def classify(self, image: Image) -> Float[Tensor, "b classes"]:
        """The mean of both branches' logits."""
        logits = [head(cls) for head, cls in zip(self.head, self.summaries(image), strict=True)]
        return torch.stack(logits).mean(0)
