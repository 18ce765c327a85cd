"""From words and pixels to vectors."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.inputs import Image, Text
from diptych.layers.position import Resize, grid_for_each
from diptych.layout import Span
from diptych.tokens import Tokens


class TextEmbedding(nn.Module):
    """BERT's input: word, position and segment embeddings, normalised (Devlin et al. 2019, figure 2).

    There is one sentence, so the segment is always 0; the table keeps BERT's second row, which then never learns.
    `segments` 0: no such table (BLIP). `length` 0: no positions, which then stand in attention (VLMo).
    """

    def __init__(
        self, vocabulary: int, length: int, width: int, segments: int = 2, eps: float = 1e-12, dropout: float = 0.0
    ):
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width) if length else None
        self.segment = nn.Embedding(segments, width) if segments else None
        self.norm = nn.LayerNorm(width, eps)
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
        return Tokens.of(self.dropout(self.norm(values)), text.real, *spans)


class PatchEmbedding(nn.Module):
    """Square patches, each projected linearly and given a position, after a class token (ViT, section 3.1).

    A ragged batch gives ragged tokens: a patch is real where its top-left pixel lies inside its image, and `resize`
    fits the learned position grid to each image's own rows and columns. `unread`: rows at the head of the position table
    that nothing reads (fairseq's habit).
    """

    def __init__(
        self, width: int, patch: int, grid: tuple[int, int], resize: Resize, channels: int = 3, dropout: float = 0.0,
        unread: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.patch, self.grid, self.resize = patch, grid, resize
        self.project = nn.Linear(channels * patch * patch, width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, unread + 1 + grid[0] * grid[1], width))
        self.unread = unread
        self.dropout = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(
        self, image: Image, hidden: Bool[Tensor, "b cells"] | None = None, blank: Float[Tensor, "1 1 d"] | None = None
    ) -> Tokens:
        """Where a cell of the patch canvas is `hidden`, `blank` stands in the place of its projected patch."""
        cls = class_tokens(self.cls + self.position[:, self.unread : self.unread + 1], image)
        extents, patches = _patches(image, self.patch)
        ((rows, columns),) = (span.grid for span in patches.layout.spans if span.grid)
        positions = self.positions(extents, rows, columns)
        patches = covered(patches.map(self.project), hidden, blank)
        return Tokens.join(cls, patches.add(positions)).map(self.dropout)

    def positions(self, extents: Int[Tensor, "b 2"], rows: int, columns: int) -> Float[Tensor, "b cells d"]:
        """The position of every cell of each image's canvas."""
        grid = self.position[0, self.unread + 1 :].unflatten(0, self.grid)
        return grid_for_each(grid, extents, rows, columns, self.resize)


class PlacelessPatchEmbedding(nn.Module):
    """Square patches, each projected linearly, after a class token: where they lie is told to attention (BEiT, VLMo)."""

    def __init__(self, width: int, patch: int, channels: int = 3):
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(channels * patch * patch, width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(
        self, image: Image, hidden: Bool[Tensor, "b cells"] | None = None, blank: Float[Tensor, "1 1 d"] | None = None
    ) -> Tokens:
        """Where a cell of the patch canvas is `hidden`, `blank` stands in the place of its projected patch."""
        patches = _patches(image, self.patch)[1].map(self.project)
        return Tokens.join(class_tokens(self.cls, image), covered(patches, hidden, blank))


def covered(patches: Tokens, hidden: Bool[Tensor, "b cells"] | None, blank: Float[Tensor, "1 1 d"] | None) -> Tokens:
    """The patches, with `blank` in the place of those that are `hidden`; the same where either is None."""
    if hidden is None or blank is None:
        return patches
    return Tokens.of(torch.where(hidden[:, :, None], blank, patches.canvas()), patches.real, *patches.layout.spans)


def class_tokens(cls: Float[Tensor, "1 1 d"], image: Image) -> Tokens:
    """One for each image."""
    real = torch.ones(len(image), 1, dtype=torch.bool, device=cls.device)
    return Tokens.of(cls.expand(len(image), -1, -1), real, Span("image", "cls", 1))


def _patches(image: Image, patch: int) -> tuple[Int[Tensor, "b 2"], Tokens]:
    """How many patches high and wide each image is, and their pixels."""
    rows, columns = (side // patch for side in image.pixels.shape[-2:])
    extents = (image.sizes + patch - 1) // patch
    pixels = rearrange(image.pixels, "b c (i p) (j q) -> b (i j) (c p q)", p=patch, q=patch)
    real = _inside(extents, rows, columns).flatten(1)
    return extents, Tokens.of(pixels, real, Span("image", "patches", rows * columns, grid=(rows, columns)))


def _inside(extents: Int[Tensor, "b 2"], rows: int, columns: int) -> Bool[Tensor, "b rows columns"]:
    """Which cells of the patch canvas hold a part of the picture."""
    height, width = extents[:, :, None].unbind(1)
    row = torch.arange(rows, device=extents.device) < height
    column = torch.arange(columns, device=extents.device) < width
    return row[:, :, None] & column[:, None, :]
