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
    `segments` 0: no such table (BLIP).
    """

    def __init__(
        self, vocabulary: int, length: int, width: int, segments: int = 2, eps: float = 1e-12, dropout: float = 0.0
    ):
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.segment = nn.Embedding(segments, width) if segments else None
        self.norm = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Text, start: int = 0) -> Tokens:
        """`start`: how many tokens of the text came before these (see layers.cache)."""
        n = text.ids.shape[1]
        if start + n > self.position.num_embeddings:
            raise ValueError(
                f"text of {start + n} tokens, but the model has positions for {self.position.num_embeddings}"
            )
        values = self.word(text.ids) + self.position.weight[start : start + n]
        if self.segment is not None:
            values = values + self.segment.weight[0]
        words = Span("text", "words", n) if start else Span("text", "words", n - 1)
        spans = (words,) if start else (Span("text", "cls", 1), words)
        return Tokens.of(self.dropout(self.norm(values)), text.real, *spans)


class PatchEmbedding(nn.Module):
    """Square patches, each projected linearly and given a position, after a class token (ViT, section 3.1).

    A ragged batch gives ragged tokens: a patch is real where its top-left pixel lies inside its image, and `resize`
    fits the learned position grid to each image's own rows and columns.
    """

    def __init__(
        self, width: int, patch: int, grid: tuple[int, int], resize: Resize, channels: int = 3, dropout: float = 0.0
    ):
        super().__init__()
        self.patch, self.grid, self.resize = patch, grid, resize
        self.project = nn.Linear(channels * patch * patch, width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], width))
        self.dropout = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, image: Image) -> Tokens:
        b, (rows, columns) = len(image), (side // self.patch for side in image.pixels.shape[-2:])
        extents = (image.sizes + self.patch - 1) // self.patch
        cls = Tokens.of(
            (self.cls + self.position[:, :1]).expand(b, -1, -1),
            torch.ones(b, 1, dtype=torch.bool, device=extents.device),
            Span("image", "cls", 1),
        )
        pixels = rearrange(image.pixels, "b c (i p) (j q) -> b (i j) (c p q)", p=self.patch, q=self.patch)
        real = _inside(extents, rows, columns).flatten(1)
        patches = Tokens.of(pixels, real, Span("image", "patches", rows * columns, grid=(rows, columns)))
        positions = self.positions(extents, rows, columns)
        return Tokens.join(cls, patches.map(self.project).add(positions)).map(self.dropout)

    def positions(self, extents: Int[Tensor, "b 2"], rows: int, columns: int) -> Float[Tensor, "b cells d"]:
        """The position of every cell of each image's canvas."""
        grid = self.position[0, 1:].unflatten(0, self.grid)
        return grid_for_each(grid, extents, rows, columns, self.resize)


def _inside(extents: Int[Tensor, "b 2"], rows: int, columns: int) -> Bool[Tensor, "b rows columns"]:
    """Which cells of the patch canvas hold a part of the picture."""
    height, width = extents[:, :, None].unbind(1)
    row = torch.arange(rows, device=extents.device) < height
    column = torch.arange(columns, device=extents.device) < width
    return row[:, :, None] & column[:, None, :]
