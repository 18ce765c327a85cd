"""Input embeddings: of text, image patches (at any, or at one fixed image size), CNN feature maps, detected regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.modules.frozen_text import InputDropout
from diptych.modules.position import (
    Resize,
    check_text_length,
    resize_bicubic,
    resize_grid_inside,
    resize_grid_per_sample,
)
from diptych.modules.tokens import Span, Tokens


class TextEmbedding(nn.Module):
    """BERT's input: the normalised sum of word, position and segment embeddings (Devlin et al. 2019, figure 2).

    The segment is always 0; the table keeps BERT's second row, which gets no gradient. `segments` 0: no segment table
    (BLIP). `length` 0: no position table, for models with a relative position bias in attention (VLMo). `word`: word
    embeddings instead of a table of `vocab_size` vectors.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        dim: int,
        segments: int = 2,
        eps: float = 1e-12,
        dropout: float = 0.0,
        word: Any = None,  # an nn.Module from token ids to vectors, instead of an nn.Embedding
    ):
        super().__init__()
        self.word = word or nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(length, dim) if length else None
        self.segment = nn.Embedding(segments, dim) if segments else None
        self.norm = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Text, start: int = 0) -> Tokens:
        """Embeds tokens; `start`: how many tokens of the text precede these (see modules.attention.KVCache).

        Raises ValueError for a text longer than the position table.
        """
        text.check()
        n = text.ids.shape[1]
        values = self.word(text.ids)
        if self.position is not None:
            check_text_length(start + n, self.position.num_embeddings)
            values = values + self.position.weight[start : start + n]
        if self.segment is not None:
            values = values + self.segment.weight[0]
        words = Span("text", "words", n) if start else Span("text", "words", n - 1)
        spans = (words,) if start else (Span("text", "cls", 1), words)
        return Tokens.from_padded(self.dropout(self.norm(values)), text.mask, *spans)


def word_table(embedding: nn.Module) -> nn.Embedding | None:
    """The word embeddings that an output layer can share; None if they are frozen features, which have no table."""
    word = getattr(embedding, "word", None)
    return word if isinstance(word, nn.Embedding) else None


class PatchEmbedding(nn.Module):
    """A class token, then linearly projected square patches with learned positions (ViT, section 3.1).

    Images of different sizes give different numbers of tokens: a patch is real where its top-left pixel lies inside its
    image, and `resize` interpolates the learned position grid to each image's own rows and columns.
    `num_unused_positions`: leading rows of the position table that are not used (a fairseq convention).
    """

    def __init__(
        self,
        dim: int,
        patch_size: int,
        grid: tuple[int, int],
        resize: Resize,
        channels: int = 3,
        dropout: float = 0.0,
        num_unused_positions: int = 0,
    ):
        super().__init__()
        self.patch_size, self.grid, self.resize = patch_size, grid, resize
        self.project = nn.Linear(channels * patch_size * patch_size, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, num_unused_positions + 1 + grid[0] * grid[1], dim))
        self.num_unused_positions = num_unused_positions
        self.dropout = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(
        self,
        image: Image,
        masked: Bool[Tensor, "b cells"] | None = None,
        mask_token: Float[Tensor, "1 1 d"] | None = None,
    ) -> Tokens:
        """Embeds patches; where `masked` is True, `mask_token` replaces the projected patch."""
        extents, patches = _patches(image, self.patch_size, self.project.in_features // self.patch_size**2)
        cls = class_tokens(
            self.cls + self.position[:, self.num_unused_positions : self.num_unused_positions + 1], image
        )
        ((rows, columns),) = (span.grid for span in patches.layout.spans if span.grid)
        positions = self.positions(extents, rows, columns)
        patches = with_mask_tokens(patches.map(self.project), masked, mask_token)
        return Tokens.concat(cls, patches.add(positions)).map(self.dropout)

    def positions(self, extents: Int[Tensor, "b 2"], rows: int, columns: int) -> Float[Tensor, "b cells d"]:
        """The position embedding of every cell of each image's patch grid."""
        grid = self.position[0, self.num_unused_positions + 1 :].unflatten(0, self.grid)
        return resize_grid_per_sample(grid, extents, rows, columns, self.resize)


class PatchEmbeddingWithoutPosition(nn.Module):
    """A class token, then linearly projected square patches without positions.

    For models with a relative position bias in attention (BEiT, VLMo).
    """

    def __init__(self, dim: int, patch_size: int, channels: int = 3):
        super().__init__()
        self.patch_size = patch_size
        self.project = nn.Linear(channels * patch_size * patch_size, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(
        self,
        image: Image,
        masked: Bool[Tensor, "b cells"] | None = None,
        mask_token: Float[Tensor, "1 1 d"] | None = None,
    ) -> Tokens:
        """Embeds patches; where `masked` is True, `mask_token` replaces the projected patch."""
        patches = _patches(image, self.patch_size, self.project.in_features // self.patch_size**2)[1].map(self.project)
        return Tokens.concat(class_tokens(self.cls, image), with_mask_tokens(patches, masked, mask_token))


def with_mask_tokens(
    patches: Tokens, masked: Bool[Tensor, "b cells"] | None, mask_token: Float[Tensor, "1 1 d"] | None
) -> Tokens:
    """The patches, with `mask_token` at the `masked` ones; unchanged where either is None."""
    if masked is None or mask_token is None:
        return patches
    return Tokens.from_padded(
        torch.where(masked[:, :, None], mask_token, patches.to_padded()), patches.mask, *patches.layout.spans
    )


def modality_row(tokens: Tokens, modality: nn.Embedding) -> int:
    """The row of a modality embedding: 0 for text, 1 + image_index for an image.

    Raises ValueError for an image that the embedding has no row for.
    """
    if tokens.layout.spans[0].modality == "text":
        return 0
    if not 0 <= tokens.image_index < modality.num_embeddings - 1:
        raise ValueError(
            f"expected an image_index below {modality.num_embeddings - 1}, the number of images of a sample, got "
            f"{tokens.image_index}: set model.num_images"
        )
    return 1 + tokens.image_index


def class_tokens(cls: Float[Tensor, "1 1 d"], image: Image) -> Tokens:
    """The class token of each image."""
    mask = torch.ones(len(image), 1, dtype=torch.bool, device=cls.device)
    return Tokens.from_padded(cls.expand(len(image), -1, -1), mask, Span("image", "cls", 1))


def _patches(image: Image, patch_size: int, channels: int) -> tuple[Int[Tensor, "b 2"], Tokens]:
    """Number of patch rows and columns of each image, and its patches' pixels. Raises ValueError: `Image.check`."""
    image.check(patch_size, channels)
    rows, columns = (side // patch_size for side in image.pixels.shape[-2:])
    extents = (image.sizes + patch_size - 1) // patch_size
    pixels = rearrange(image.pixels, "b c (i p) (j q) -> b (i j) (c p q)", p=patch_size, q=patch_size)
    mask = _inside(extents, rows, columns).flatten(1)
    return extents, Tokens.from_padded(pixels, mask, Span("image", "patches", rows * columns, grid=(rows, columns)))


def _inside(extents: Int[Tensor, "b 2"], rows: int, columns: int) -> Bool[Tensor, "b rows columns"]:
    """The mask of cells inside each image, on a grid of rows × columns."""
    height, width = extents[:, :, None].unbind(1)
    row = torch.arange(rows, device=extents.device) < height
    column = torch.arange(columns, device=extents.device) < width
    return row[:, :, None] & column[:, None, :]


Network = Callable[[Tensor], Tensor]
"""A CNN, from images of one size (b, 3, h, w) to feature maps (b, features, rows, columns)."""


def grid_features(network: Network, image: Image) -> Tokens:
    """The feature map of each image as tokens, one per cell, in raster order.

    Convolutions would mix padding into the features, so images are cropped to their size, and those of one size share a
    call: an image's features do not depend on its padding. (Batch norm in training uses the statistics of each size.)
    Raises ValueError for a batch without images.
    """
    image.check()
    sizes, size_index = torch.unique(image.sizes, dim=0, return_inverse=True)
    maps = [network(image.pixels[size_index == i, :, :h, :w]) for i, (h, w) in enumerate(sizes.tolist())]
    extents = torch.tensor([x.shape[2:] for x in maps], device=size_index.device)[size_index]
    rows, columns = extents.amax(0).tolist()
    padded = [F.pad(x, (0, columns - x.shape[3], 0, rows - x.shape[2])) for x in maps]
    inverse = torch.cat([(size_index == i).nonzero().squeeze(1) for i in range(len(sizes))]).argsort()
    values = torch.cat(padded).index_select(0, inverse).flatten(2).mT
    inside = _inside(extents, rows, columns)
    return Tokens.from_padded(values, inside.flatten(1), Span("image", "patches", rows * columns, grid=(rows, columns)))


class GridEmbedding(nn.Module):
    """Image tokens from a CNN's last feature map: each cell projected to `dim`, plus a learned position.

    Args:
        network: the CNN. If it is not a Module, it is frozen and not saved.
        feature_dim: channels of its feature map.
        grid: rows and columns of the learned positions, interpolated to each image's own.
        class_token: put a learned class token in front, as PatchEmbedding does, for models that pool there.

    Source: Pixel-BERT (Huang et al. 2020), section 3.2. Differs: it has no learned positions beside the CNN.
    """

    def __init__(self, network: Network, feature_dim: int, dim: int, grid: tuple[int, int], class_token: bool = False):
        super().__init__()
        self.network, self.grid = network, grid
        self.project = nn.Linear(feature_dim, dim)
        self.position = nn.Parameter(torch.zeros(*grid, dim))
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        for parameter in (self.position, self.cls):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self,
        image: Image,
        masked: Bool[Tensor, "b cells"] | None = None,
        mask_token: Float[Tensor, "1 1 d"] | None = None,
    ) -> Tokens:
        """Embeds cells; where `masked` is True, `mask_token` replaces the projected feature."""
        features = grid_features(self.network, image)
        (span,) = features.layout.spans
        assert span.grid is not None
        tokens = features.map(self.project)
        if masked is not None and mask_token is not None:
            values = torch.where(masked[:, :, None], mask_token, tokens.to_padded())
            tokens = Tokens.from_padded(values, tokens.mask, span)
        tokens = tokens.add(self.positions(tokens.mask.unflatten(1, span.grid)))
        return tokens if self.cls is None else Tokens.concat(class_tokens(self.cls, image), tokens)

    def positions(self, inside: Bool[Tensor, "b rows columns"]) -> Float[Tensor, "b cells d"]:
        """The position embedding of every cell of each image's map, whose extent is the mask `inside`."""
        return resize_grid_inside(self.position, inside, resize_bicubic)


class RegionEmbedding(nn.Module):
    """Detected regions as tokens: the sum of projected feature and projected box, normalised (ViLBERT, section 3.2).

    `feature_dim`: the width of the detector's features; `feature_dropout`: input dropout on them.
    """

    def __init__(
        self, feature_dim: int, dim: int, eps: float = 1e-12, dropout: float = 0.0, feature_dropout: float = 0.0
    ):
        super().__init__()
        self.feature = InputDropout(feature_dim, dim, feature_dropout)
        self.box = nn.Linear(5, dim)
        self.norm = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Regions) -> Tokens:
        regions.check(self.feature.in_features)
        values = self.dropout(self.norm(self.feature(regions.features) + self.box(regions.boxes)))
        return Tokens.from_padded(values, regions.mask, *region_spans(regions))


class RegionEmbeddingWithoutPosition(nn.Module):
    """Detected regions as tokens without their boxes: projected feature plus an image segment embedding, normalised.

    `norm`: the LayerNorm of the text embedding, shared by both; `feature_dropout`: input dropout on the features.
    Source: VisualBERT (Li et al. 2019).
    """

    def __init__(
        self, feature_dim: int, dim: int, norm: nn.LayerNorm, dropout: float = 0.0, feature_dropout: float = 0.0
    ):
        super().__init__()
        self.feature = InputDropout(feature_dim, dim, feature_dropout)
        self.kind = nn.Embedding(1, dim)
        self.norm = norm
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Regions) -> Tokens:
        regions.check(self.feature.in_features)
        values = self.dropout(self.norm(self.feature(regions.features) + self.kind.weight[0]))
        return Tokens.from_padded(values, regions.mask, *region_spans(regions))


def region_spans(regions: Regions) -> tuple[Span, ...]:
    """The spans of a batch of regions: a leading whole-image region replaces a class token."""
    n = regions.mask.shape[1]
    whole = (Span("image", "cls", 1), Span("image", "regions", n - 1))
    return whole if regions.has_whole_image else (Span("image", "regions", n),)


class MultiScalePatchEmbedding(nn.Module):
    """One branch of CrossViT's input: every image resized to a square of `size` pixels, then class token and patches.

    `stem`: three convolutions embed the patches (the paper's †); else one with the patch size as kernel and stride.
    Source: CrossViT, section 3.2.
    """

    def __init__(self, size: int, patch_size: int, dim: int, stem: bool = False):
        super().__init__()
        if size % patch_size:
            raise ValueError(f"image size {size} is not divisible by patch_size {patch_size}")
        self.size, self.grid = size, (size // patch_size, size // patch_size)
        self.project = conv_stem(patch_size, dim) if stem else nn.Conv2d(3, dim, patch_size, patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], dim))
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, image: Image) -> Tokens:
        image.check(channels=3)
        patches = self.project(resized_to(image, self.size)).flatten(2).mT
        values = torch.cat([self.cls.expand(len(image), -1, -1), patches], 1) + self.position
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return Tokens.from_padded(
            values, mask, Span("image", "cls", 1), Span("image", "patches", patches.shape[1], grid=self.grid)
        )


STRIDES = {12: ((4, 3), (3, 0), (1, 1)), 16: ((4, 3), (2, 1), (2, 1))}
"""Stride and padding of each convolution of a stem, by patch size."""


def conv_stem(patch_size: int, dim: int) -> nn.Sequential:
    """A patch embedding of three convolutions with increasing width; kernel sizes 7, 3 and 3.

    Raises ValueError for a patch size without known strides, or a width not divisible by 4.
    """
    if patch_size not in STRIDES or dim % 4:
        raise ValueError(
            f"a convolutional stem needs patch_size {' or '.join(map(str, STRIDES))} and a dim divisible by 4, "
            f"got patch_size {patch_size} and dim {dim}"
        )
    (s1, p1), (s2, p2), (s3, p3) = STRIDES[patch_size]
    return nn.Sequential(
        nn.Conv2d(3, dim // 4, 7, s1, p1),
        nn.ReLU(),
        nn.Conv2d(dim // 4, dim // 2, 3, s2, p2),
        nn.ReLU(),
        nn.Conv2d(dim // 2, dim, 3, s3, p3),
    )


def resized_to(image: Image, side: int) -> Float[Tensor, "b c side side"]:
    """Each image, without its padding, resized to a square: bicubic, corners not aligned, no antialiasing.

    Images of one size share one resize.
    """
    sizes, size_index = torch.unique(image.sizes, dim=0, return_inverse=True)
    square = image.pixels.new_empty(*image.pixels.shape[:2], side, side)
    for i, (height, width) in enumerate(sizes.tolist()):
        pixels = image.pixels[size_index == i, :, :height, :width]
        if (height, width) != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="bicubic", align_corners=False)
        square[size_index == i] = pixels
    return square
