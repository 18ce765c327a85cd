"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022), figure 1.

A ViT reads the patches that are visible; a small one, given a mask token for each of the others, guesses their pixels.

Differs: weights are drawn as the other transformers' here (truncated normal, 0.02), not by Xavier's rule. Visible patches
stay in raster order; the shuffle of the official code only serves to cut hidden ones off. Packed tokens hold the visible
ones alone, as published; padded ones carry the hidden as padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.batch import Image
from diptych.modules.block import PreNormBlock
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.init import init_transformer
from diptych.modules.position import resize_bicubic, resize_grid_inside, sincos_2d
from diptych.modules.tokens import Layout, Tokens


class PixelDecoder(nn.Module):
    """From the visible patches to the pixels of all (section 3, "MAE decoder"). Positions are fixed: a buffer."""

    position: Tensor

    def __init__(
        self, inputs: int, dim: int, depth: int, num_heads: int, mlp_dim: int, patch_size: int, grid: tuple[int, int]
    ):
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(inputs, dim)
        self.mask = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("position", sincos_2d(dim, grid))
        self.blocks = nn.ModuleList(PreNormBlock(dim, num_heads, mlp_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.predict = nn.Linear(dim, 3 * patch_size * patch_size)
        nn.init.trunc_normal_(self.mask, std=0.02)

    def forward(self, visible: Tokens, whole: Layout) -> Tokens:
        """The patches of `whole`: by row, column and channel of their pixels."""
        shown = visible.map(self.embed)
        canvas = torch.where(visible.mask[:, :, None], shown.to_padded(), self.mask.to(shown.values.dtype))
        tokens = Tokens.from_padded(canvas, whole.mask, *whole.spans).add(self._positions(whole))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.select(name="patches").map(self.norm).map(self.predict)

    def _positions(self, whole: Layout) -> Tensor:
        """The class token's, and the grid fitted to each image."""
        (patches,) = whole.columns("image", "patches")
        start, end = whole.bounds(patches)
        inside = whole.mask[:, start:end].unflatten(1, whole.spans[patches].grid or self.grid)
        cells = resize_grid_inside(self.position[0, 1:].unflatten(0, self.grid), inside, resize_bicubic)
        return torch.cat([self.position[:, :1].expand(len(cells), -1, -1), cells], 1)


class MAE(nn.Module):
    """The defaults are ViT-B/16 with the decoder of 8 blocks of width 512. `grid`: of the images trained on."""

    def __init__(
        self,
        dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072, patch_size: int = 16,
        grid: tuple[int, int] = (14, 14), decoder_dim: int = 512, decoder_depth: int = 8, decoder_num_heads: int = 16,
        decoder_mlp_dim: int = 2048,
    ):  # fmt: skip
        super().__init__()
        self.patch_size = patch_size
        self.patches = PatchEmbedding(dim, patch_size, grid, resize_bicubic)
        del self.patches.position  # which would learn
        self.patches.register_buffer("position", sincos_2d(dim, grid))
        self.blocks = nn.ModuleList(PreNormBlock(dim, num_heads, mlp_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.decoder = PixelDecoder(
            dim, decoder_dim, decoder_depth, decoder_num_heads, decoder_mlp_dim, patch_size, grid
        )
        self.apply(init_transformer)

    def embed_image(self, image: Image) -> Tokens:
        return self.patches(image)

    def encode_visible(self, patches: Tokens) -> Tokens:
        for block in self.blocks:
            patches = block(patches)
        return patches.map(self.norm)

    def encode_image(self, image: Image) -> Tokens:
        return self.encode_visible(self.embed_image(image))

    def reconstruct(self, visible: Tokens, whole: Layout) -> Tokens:
        return self.decoder(visible, whole)
