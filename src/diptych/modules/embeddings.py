"""From words and pixels to vectors.

From a convolutional network's last map to tokens, one a cell.

From what a detector saw to vectors.

One picture at a size of one's own: resized, cut into patches by convolution, given positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.modules.position import Resize, resize_bicubic, resize_grid_inside, resize_grid_per_sample
from diptych.modules.tokens import Span, Tokens


class TextEmbedding(nn.Module):
    """BERT's input: word, position and segment embeddings, normalised (Devlin et al. 2019, figure 2).

    There is one sentence, so the segment is always 0; the table keeps BERT's second row, which then never learns.
    `segments` 0: no such table (BLIP). `length` 0: no positions, which then stand in attention (VLMo).
    """

    def __init__(
        self, vocab_size: int, length: int, dim: int, segments: int = 2, eps: float = 1e-12, dropout: float = 0.0
    ):
        super().__init__()
        self.word = nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(length, dim) if length else None
        self.segment = nn.Embedding(segments, dim) if segments else None
        self.norm = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Text, start: int = 0) -> Tokens:
        """`start`: how many tokens of the text came before these (see layers.cache)."""
        n = text.ids.shape[1]
        values = self.word(text.ids)
        if self.position is not None:
            if start + n > (most := self.position.num_embeddings):
                raise ValueError(f"text of {start + n} tokens, but the model has positions for {most}")
            values = values + self.position.weight[start : start + n]
        if self.segment is not None:
            values = values + self.segment.weight[0]
        words = Span("text", "words", n) if start else Span("text", "words", n - 1)
        spans = (words,) if start else (Span("text", "cls", 1), words)
        return Tokens.from_padded(self.dropout(self.norm(values)), text.mask, *spans)


class PatchEmbedding(nn.Module):
    """Square patches, each projected linearly and given a position, after a class token (ViT, section 3.1).

    A ragged batch gives ragged tokens: a patch is real where its top-left pixel lies inside its image, and `resize`
    fits the learned position grid to each image's own rows and columns. `unread`: rows at the head of the position table
    that nothing reads (fairseq's habit).
    """

    def __init__(
        self, dim: int, patch_size: int, grid: tuple[int, int], resize: Resize, channels: int = 3, dropout: float = 0.0,
        unread: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.patch_size, self.grid, self.resize = patch_size, grid, resize
        self.project = nn.Linear(channels * patch_size * patch_size, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, unread + 1 + grid[0] * grid[1], dim))
        self.unread = unread
        self.dropout = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(
        self, image: Image, hidden: Bool[Tensor, "b cells"] | None = None, blank: Float[Tensor, "1 1 d"] | None = None
    ) -> Tokens:
        """Where a cell of the patch canvas is `hidden`, `blank` stands in the place of its projected patch."""
        cls = class_tokens(self.cls + self.position[:, self.unread : self.unread + 1], image)
        extents, patches = _patches(image, self.patch_size)
        ((rows, columns),) = (span.grid for span in patches.layout.spans if span.grid)
        positions = self.positions(extents, rows, columns)
        patches = with_mask_tokens(patches.map(self.project), hidden, blank)
        return Tokens.concat(cls, patches.add(positions)).map(self.dropout)

    def positions(self, extents: Int[Tensor, "b 2"], rows: int, columns: int) -> Float[Tensor, "b cells d"]:
        """The position of every cell of each image's canvas."""
        grid = self.position[0, self.unread + 1 :].unflatten(0, self.grid)
        return resize_grid_per_sample(grid, extents, rows, columns, self.resize)


class PatchEmbeddingWithoutPosition(nn.Module):
    """Square patches, each projected linearly, after a class token: where they lie is told to attention (BEiT, VLMo)."""

    def __init__(self, dim: int, patch_size: int, channels: int = 3):
        super().__init__()
        self.patch_size = patch_size
        self.project = nn.Linear(channels * patch_size * patch_size, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(
        self, image: Image, hidden: Bool[Tensor, "b cells"] | None = None, blank: Float[Tensor, "1 1 d"] | None = None
    ) -> Tokens:
        """Where a cell of the patch canvas is `hidden`, `blank` stands in the place of its projected patch."""
        patches = _patches(image, self.patch_size)[1].map(self.project)
        return Tokens.concat(class_tokens(self.cls, image), with_mask_tokens(patches, hidden, blank))


def with_mask_tokens(
    patches: Tokens, hidden: Bool[Tensor, "b cells"] | None, blank: Float[Tensor, "1 1 d"] | None
) -> Tokens:
    """The patches, with `blank` in the place of those that are `hidden`; the same where either is None."""
    if hidden is None or blank is None:
        return patches
    return Tokens.from_padded(
        torch.where(hidden[:, :, None], blank, patches.to_padded()), patches.mask, *patches.layout.spans
    )


def class_tokens(cls: Float[Tensor, "1 1 d"], image: Image) -> Tokens:
    """One for each image."""
    real = torch.ones(len(image), 1, dtype=torch.bool, device=cls.device)
    return Tokens.from_padded(cls.expand(len(image), -1, -1), real, Span("image", "cls", 1))


def _patches(image: Image, patch_size: int) -> tuple[Int[Tensor, "b 2"], Tokens]:
    """How many patches high and wide each image is, and their pixels."""
    rows, columns = (side // patch_size for side in image.pixels.shape[-2:])
    extents = (image.sizes + patch_size - 1) // patch_size
    pixels = rearrange(image.pixels, "b c (i p) (j q) -> b (i j) (c p q)", p=patch_size, q=patch_size)
    real = _inside(extents, rows, columns).flatten(1)
    return extents, Tokens.from_padded(pixels, real, Span("image", "patches", rows * columns, grid=(rows, columns)))


def _inside(extents: Int[Tensor, "b 2"], rows: int, columns: int) -> Bool[Tensor, "b rows columns"]:
    """Which cells of the patch canvas hold a part of the picture."""
    height, width = extents[:, :, None].unbind(1)
    row = torch.arange(rows, device=extents.device) < height
    column = torch.arange(columns, device=extents.device) < width
    return row[:, :, None] & column[:, None, :]


Network = Callable[[Tensor], Tensor]
"""Pictures of one size (b, 3, h, w) to their maps (b, features, rows, columns)."""


def grid_features(network: Network, image: Image) -> Tokens:
    """A token for each cell of each image's last map, in raster order.

    A convolution would see where a canvas ends, so images of one size are read together and cut out of it: what a
    picture gives does not depend on its canvas. (Batch norms in training see each size by itself.)
    """
    sizes, which = torch.unique(image.sizes, dim=0, return_inverse=True)
    maps = [network(image.pixels[which == i, :, :h, :w]) for i, (h, w) in enumerate(sizes.tolist())]
    extents = torch.tensor([x.shape[2:] for x in maps], device=which.device)[which]
    rows, columns = extents.amax(0).tolist()
    canvases = [F.pad(x, (0, columns - x.shape[3], 0, rows - x.shape[2])) for x in maps]
    back = torch.cat([(which == i).nonzero().squeeze(1) for i in range(len(sizes))]).argsort()
    values = torch.cat(canvases).index_select(0, back).flatten(2).mT
    inside = torch.arange(rows, device=which.device)[:, None] < extents[:, :1, None]
    inside = inside & (torch.arange(columns, device=which.device) < extents[:, 1:, None])
    return Tokens.from_padded(values, inside.flatten(1), Span("image", "patches", rows * columns, grid=(rows, columns)))


class GridEmbedding(nn.Module):
    """The last map of any CNN as image tokens: each cell projected to `width`, with a learned position (Pixel-BERT: Huang et
    al. 2020, section 3.2, whose positions are the CNN's alone). `network` that is no Module is frozen and not saved.

    `grid`: rows and columns of the learned positions, resized to each image's own. `first`: a class token with a position of
    its own stands in front, as a ViT's (layers.embed.PatchEmbedding), for models that read the image there.
    """

    def __init__(self, network: Network, feature_dim: int, dim: int, grid: tuple[int, int], first: bool = False):
        super().__init__()
        self.network, self.grid = network, grid
        self.project = nn.Linear(feature_dim, dim)
        self.position = nn.Parameter(torch.zeros(*grid, dim))
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if first else None
        for grown in (self.position, self.cls):
            if grown is not None:
                nn.init.trunc_normal_(grown, std=0.02)

    def forward(
        self, image: Image, hidden: Bool[Tensor, "b cells"] | None = None, blank: Float[Tensor, "1 1 d"] | None = None
    ) -> Tokens:
        """Where a cell is `hidden`, `blank` stands in the place of what the network saw there."""
        seen = grid_features(self.network, image)
        (span,) = seen.layout.spans
        assert span.grid is not None
        tokens = seen.map(self.project)
        if hidden is not None and blank is not None:
            shown = torch.where(hidden[:, :, None], blank, tokens.to_padded())
            tokens = Tokens.from_padded(shown, tokens.mask, span)
        tokens = tokens.add(self.positions(tokens.mask.unflatten(1, span.grid)))
        return tokens if self.cls is None else Tokens.concat(class_tokens(self.cls, image), tokens)

    def positions(self, inside: Bool[Tensor, "b rows columns"]) -> Float[Tensor, "b cells d"]:
        """Of every cell of each image's map; `inside` says which hold one."""
        return resize_grid_inside(self.position, inside, resize_bicubic)


class RegionEmbedding(nn.Module):
    """What a detector saw: each region's feature and its box, projected linearly, summed and normalised (ViLBERT, 3.2).

    `features`: the width of the detector's features.
    """

    def __init__(self, feature_dim: int, dim: int, eps: float = 1e-12, dropout: float = 0.0):
        super().__init__()
        self.feature = nn.Linear(feature_dim, dim)
        self.box = nn.Linear(5, dim)
        self.norm = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Regions) -> Tokens:
        values = self.dropout(self.norm(self.feature(regions.features) + self.box(regions.boxes)))
        return Tokens.from_padded(values, regions.mask, *region_spans(regions))


class RegionEmbeddingWithoutPosition(nn.Module):
    """What a detector saw, but not where: projected linearly, told from words by one vector, and normalised (VisualBERT).

    `norm`: the words' own, which serves both.
    """

    def __init__(self, feature_dim: int, dim: int, norm: nn.LayerNorm, dropout: float = 0.0):
        super().__init__()
        self.feature = nn.Linear(feature_dim, dim)
        self.kind = nn.Embedding(1, dim)
        self.norm = norm
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Regions) -> Tokens:
        values = self.dropout(self.norm(self.feature(regions.features) + self.kind.weight[0]))
        return Tokens.from_padded(values, regions.mask, *region_spans(regions))


def region_spans(regions: Regions) -> tuple[Span, ...]:
    """The meaning of a batch of regions' columns: the whole image in front stands where others have a class token."""
    n = regions.mask.shape[1]
    whole = (Span("image", "cls", 1), Span("image", "regions", n - 1))
    return whole if regions.has_whole_image else (Span("image", "regions", n),)


class MultiScalePatchEmbedding(nn.Module):
    """Every image resized to a square of `size` pixels, whatever its own, then patches of it behind a class token
    (CrossViT, section 3.2).

    `stem`: three convolutions make the patches (the paper's †); else one, of a patch's size.
    """

    def __init__(self, size: int, patch_size: int, dim: int, stem: bool = False):
        super().__init__()
        if size % patch_size:
            raise ValueError(f"{size} pixels do not divide into patches of {patch_size}")
        self.size, self.grid = size, (size // patch_size, size // patch_size)
        self.project = conv_stem(patch_size, dim) if stem else nn.Conv2d(3, dim, patch_size, patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], dim))
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, image: Image) -> Tokens:
        patches = self.project(resized_to(image, self.size)).flatten(2).mT
        values = torch.cat([self.cls.expand(len(image), -1, -1), patches], 1) + self.position
        real = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return Tokens.from_padded(
            values, real, Span("image", "cls", 1), Span("image", "patches", patches.shape[1], grid=self.grid)
        )


STRIDES = {12: ((4, 3), (3, 0), (1, 1)), 16: ((4, 3), (2, 1), (2, 1))}
"""By patch: stride and padding of each convolution of a stem."""


def conv_stem(patch_size: int, dim: int) -> nn.Sequential:
    """Three convolutions of growing width in place of one; the first sees 7 pixels, the others 3 cells. Raises ValueError."""
    if patch_size not in STRIDES or dim % 4:
        raise ValueError(
            f"a stem makes patches of {' or '.join(map(str, STRIDES))} of a width divisible by 4, not {patch_size}"
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
    """Each image, without its padding, as a square: bicubic, corners not aligned, no antialiasing (as torch's
    interpolate). Images of one size share one resize.
    """
    shapes, which = torch.unique(image.sizes, dim=0, return_inverse=True)
    square = image.pixels.new_empty(*image.pixels.shape[:2], side, side)
    for i, (height, width) in enumerate(shapes.tolist()):
        part = image.pixels[which == i, :, :height, :width]
        if (height, width) != (side, side):
            part = F.interpolate(part, (side, side), mode="bicubic", align_corners=False)
        square[which == i] = part
    return square
