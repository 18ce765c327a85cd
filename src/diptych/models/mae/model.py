"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022), figure 1.

A ViT encodes the visible patches; a small decoder, with a mask token at each masked patch, predicts their
pixels.

Differs: weights are drawn as the other transformers' here (truncated normal, 0.02), not by Xavier initialisation.
Visible patches stay in raster order; the shuffle of the official code only serves to cut masked ones off. Packed tokens
are the visible patches only, as published; padded ones include the masked patches as padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from diptych.batch import Image
from diptych.models.mae.config import MAEConfig
from diptych.modules.block import PreNormBlock
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.position import resize_bicubic, resize_grid_inside, sincos_2d
from diptych.modules.tokens import Layout, Tokens


class PixelDecoder(nn.Module):
    """The pixels of all patches, from the visible ones (section 3, "MAE decoder"). Positions are fixed: a buffer."""

    position: Tensor

    def __init__(
        self, input_dim: int, dim: int, depth: int, num_heads: int, mlp_dim: int, patch_size: int, grid: tuple[int, int]
    ):
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(input_dim, dim)
        self.mask = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("position", sincos_2d(dim, grid))
        self.blocks = nn.ModuleList(PreNormBlock(dim, num_heads, mlp_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.predict = nn.Linear(dim, 3 * patch_size * patch_size)
        nn.init.trunc_normal_(self.mask, std=0.02)

    def forward(self, visible: Tokens, layout: Layout) -> Tokens:
        """Predicted pixels of every patch, ordered by row, column and channel.

        Args:
            visible: the encoder's tokens.
            layout: of all tokens before masking.
        """
        embedded = visible.map(self.embed)  # b visible decoder_dim
        masked = self.mask.to(embedded.values.dtype)
        values = torch.where(visible.mask[:, :, None], embedded.to_padded(), masked)  # b (1 + patches) decoder_dim
        tokens = Tokens.from_padded(values, layout.mask, *layout.spans).add(self._positions(layout))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.select(name="patches").map(self.norm).map(self.predict)  # b patches (3 patch_size²)

    def _positions(self, layout: Layout) -> Tensor:
        """The position of the class token, and the position grid resized to each image."""
        (patches,) = layout.columns("image", "patches")
        start, end = layout.bounds(patches)
        inside = layout.mask[:, start:end].unflatten(1, layout.spans[patches].grid or self.grid)
        cells = resize_grid_inside(self.position[0, 1:].unflatten(0, self.grid), inside, resize_bicubic)
        return torch.cat([self.position[:, :1].expand(len(cells), -1, -1), cells], 1)


class MAE(nn.Module):
    """A ViT encoder of visible patches and a decoder that predicts the pixels of all patches."""

    def __init__(self, config: MAEConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        dim = config.dim
        self.patch_size = config.patch_size
        self.patches = embedders.build_image(dim, config.grid) or sincos_patches(dim, config.patch_size, config.grid)
        self.blocks = nn.ModuleList(PreNormBlock(dim, config.num_heads, config.mlp_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.decoder = PixelDecoder(
            dim,
            config.decoder_dim,
            config.decoder_depth,
            config.decoder_num_heads,
            config.decoder_mlp_dim,
            config.patch_size,
            config.grid,
        )
        self.apply(init_transformer)

    def forward(self, image: Image, masked: Bool[Tensor, "b cells"]) -> Tokens:
        """Predicted pixels of every patch, from those patches that are not `masked`.

        Args:
            image: b images.
            masked: which patches the encoder does not get, by cell of the padded patch grid in raster order.

        Returns:
            b × cells tokens of 3 · patch_size² pixels, ordered by row, column and channel.
        """
        patches = self.embed_image(image)  # b (1 + cells) dim
        visible = self.encode_visible(patches.apply_mask(F.pad(~masked, (1, 0), value=True)))
        return self.reconstruct(visible, patches.layout)  # b cells (3 patch_size²)

    def embed_image(self, image: Image) -> Tokens:
        """The class token and the patches with their positions, before the first block."""
        return self.patches(image)

    def encode_visible(self, patches: Tokens) -> Tokens:
        """The encoder's output for the patches that masking has left."""
        for block in self.blocks:
            patches = block(patches)
        return patches.map(self.norm)

    def encode_image(self, image: Image) -> Tokens:
        """The encoder's output for the whole image, nothing masked."""
        return self.encode_visible(self.embed_image(image))

    def reconstruct(self, visible: Tokens, whole: Layout) -> Tokens:
        """Predicted pixels of every patch of the layout `whole`, ordered by row, column and channel."""
        return self.decoder(visible, whole)


def sincos_patches(dim: int, patch_size: int, grid: tuple[int, int]) -> PatchEmbedding:
    """A patch embedding whose positions are fixed sines and cosines: a buffer instead of the learned parameter."""
    patches = PatchEmbedding(dim, patch_size, grid, resize_bicubic)
    del patches.position
    patches.register_buffer("position", sincos_2d(dim, grid))
    return patches
