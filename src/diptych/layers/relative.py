"""Relative positions: what attention adds to a score, by where the asking and the asked token stand to each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.layers.spline import cubic
from diptych.layout import Layout, Span


class RelativePositions(nn.Module):
    """One table for all layers: a bias per head, for each way in which two tokens can stand to each other.

    Two patches differ by rows and columns, two words by places; the class token of each modality asks, is asked, and asks
    itself, alike for all; and all pairs of different modalities share one row per direction (VLMo's official code; BEiT,
    Bao et al., ICLR 2022, for the image part). `grid` and `text_length` are the farthest that patches and words may lie.
    """

    def __init__(self, layers: int, heads: int, grid: tuple[int, int], text_length: int):
        super().__init__()
        self.layers, self.grid, self.text_length = layers, grid, text_length
        patches = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        # the order of rows: patches, image class token, text to image, image to text, words, text class token
        self.of_cls = {"image": patches, "text": patches + 5 + 2 * text_length - 3}
        self.across = {"text": patches + 3, "image": patches + 4}
        self.same_word = patches + 5 + text_length - 2
        self.table = nn.Parameter(torch.zeros(patches + 5 + 2 * text_length, layers * heads))

    def forward(self, layout: Layout) -> tuple[Float[Tensor, "h n n"], ...]:
        """The bias of each layer: heads, asking columns, asked columns. Raises ValueError where tokens lie too far apart."""
        for number, span in enumerate(layout.spans):
            self._check(layout, number, span)
        index = torch.cat([torch.cat([self._between(a, b) for b in layout.spans], 1) for a in layout.spans])
        return F.embedding(index.to(self.table.device), self.table).permute(2, 0, 1).chunk(self.layers)

    def _check(self, layout: Layout, number: int, span: Span) -> None:
        """Pads may lie beyond the grid (they get the bias of its edge); patches of a picture may not."""
        if span.name == "words" and span.length >= self.text_length:
            raise ValueError(f"text of {span.length + 1} tokens, but the model has positions for {self.text_length}")
        rows, columns = self.grid
        if span.grid and (span.grid[0] > rows or span.grid[1] > columns):
            start, end = layout.bounds(number)
            real = layout.real[:, start:end].unflatten(1, span.grid)
            if real[:, rows:].any() or real[:, :, columns:].any():
                raise ValueError(f"image of more than {rows} × {columns} patches, for which there are no positions")

    def _between(self, asking: Span, asked: Span) -> Int[Tensor, "n m"]:
        """Rows of the table, for each column of one span with each of another."""
        if asking.modality != asked.modality:
            row = self.across[asking.modality]
        elif asking.name == "cls":
            row = self.of_cls[asking.modality] + (2 if asked.name == "cls" else 0)
        elif asked.name == "cls":
            row = self.of_cls[asking.modality] + 1
        else:
            return self._patches(asking, asked) if asking.grid and asked.grid else self._words(asking, asked)
        return torch.full((asking.length, asked.length), row)

    def _words(self, asking: Span, asked: Span) -> Int[Tensor, "n m"]:
        return self.same_word + torch.arange(asked.length) - torch.arange(asking.length)[:, None]

    def _patches(self, asking: Span, asked: Span) -> Int[Tensor, "n m"]:
        assert asking.grid and asked.grid
        rows, columns = self.grid
        down = _apart(asking.grid, asked.grid, 0).clamp(1 - rows, rows - 1)
        right = _apart(asking.grid, asked.grid, 1).clamp(1 - columns, columns - 1)
        return (down + rows - 1) * (2 * columns - 1) + right + columns - 1


def _apart(asking: tuple[int, int], asked: tuple[int, int], axis: int) -> Int[Tensor, "n m"]:
    """How far each cell of one grid lies behind each of another, along rows (0) or columns (1)."""
    here, there = (
        torch.arange(grid[axis]).view(-1, 1) if axis == 0 else torch.arange(grid[axis]).view(1, -1)
        for grid in (asking, asked)
    )
    return here.expand(asking).flatten()[:, None] - there.expand(asked).flatten()


def resize_table(
    table: Float[Tensor, "rows biases"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "more biases"]:
    """A table for images of another grid: what patches far apart have learned serves those at the edge of the new grid,
    and near ones stay as they are, as BEiT's and VLMo's code have it. All rows but the patches' stay.

    The old distances are laid out as sums of a geometric series that ends where the new ones end, and a cubic spline reads
    them at each whole distance. Differs: grids that are no squares are resized too, each axis by itself. Raises ValueError
    for grids of fewer than three rows or columns, through which no cubic goes.
    """
    sides = [2 * side - 1 for side in old]
    patches = table[: sides[0] * sides[1]].double().unflatten(0, sides)
    down, right = (_stretch(a, b) for a, b in zip(old, new, strict=True))
    fitted = torch.einsum("ir,jc,rcd->ijd", down, right, patches).flatten(0, 1)
    return torch.cat([fitted.to(table.dtype), table[sides[0] * sides[1] :]])


def _stretch(old: int, new: int) -> Float[Tensor, "m n"]:
    """From biases of distances below `old` to those below `new`, along one axis."""
    if old == new:
        return torch.eye(2 * old - 1, dtype=torch.float64)
    left, right, ratio = 1.01, 1.5, 1.0
    while right - left > 1e-6:  # the ratio of the series, found as closely as there
        ratio = (left + right) / 2
        left, right = (left, ratio) if (1 - ratio ** (old - 1)) / (1 - ratio) > new - 1 else (ratio, right)
    distances = torch.cumsum(ratio ** torch.arange(old - 1, dtype=torch.float64), 0)
    points = torch.cat([-distances.flip(0), distances.new_zeros(1), distances])
    return cubic(points, torch.arange(1.0 - new, new, dtype=torch.float64))
