"""Learned position grids, and how each family of papers resizes them: four resizers are in use, and they differ.

Positions that are not learned: sines and cosines of a patch's row and column.

Cubic splines through given points: what SciPy's `interp2d(kind="cubic")` does along each axis of a grid.

Relative positions: what attention adds to a score, by where the asking and the asked token stand to each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.modules.tokens import Layout, Span

Resize = Callable[[Tensor, int, int], Tensor]  # (h, w, d), rows, columns -> (rows, columns, d)


def _interpolate(grid: Tensor, rows: int, columns: int, **how: str | bool) -> Tensor:
    if grid.shape[:2] == (rows, columns):
        return grid
    return F.interpolate(grid.permute(2, 0, 1)[None], (rows, columns), **how)[0].permute(1, 2, 0)  # type: ignore[arg-type]


def resize_bicubic(grid: Float[Tensor, "h w d"], rows: int, columns: int) -> Float[Tensor, "rows columns d"]:
    """Bicubic with antialiasing, as timm's ViT."""
    return _interpolate(grid, rows, columns, mode="bicubic", align_corners=False, antialias=True)


def resize_bicubic_plain(grid: Float[Tensor, "h w d"], rows: int, columns: int) -> Float[Tensor, "rows columns d"]:
    """Bicubic without antialiasing, as ALBEF, BLIP and BEiT-3."""
    return _interpolate(grid, rows, columns, mode="bicubic", align_corners=False)


def resize_bilinear(grid: Float[Tensor, "h w d"], rows: int, columns: int) -> Float[Tensor, "rows columns d"]:
    """Bilinear, corners not aligned: how ViLT loads a checkpoint made at another image size."""
    return _interpolate(grid, rows, columns, mode="bilinear", align_corners=False)


def resize_aligned(grid: Float[Tensor, "h w d"], rows: int, columns: int) -> Float[Tensor, "rows columns d"]:
    """Bilinear with aligned corners: how ViLT fits its grid to each image (visual_embed)."""
    return _interpolate(grid, rows, columns, mode="bilinear", align_corners=True)


def resize_grid_per_sample(
    grid: Float[Tensor, "h w d"], extents: Int[Tensor, "b 2"], rows: int, columns: int, resize: Resize
) -> Float[Tensor, "b cells d"]:
    """The grid resized to every image's own (rows, columns), on a canvas of rows × columns cells, zero outside the image.

    Images of one extent share one resize.
    """
    shapes, which = torch.unique(extents, dim=0, return_inverse=True)
    canvases = [F.pad(resize(grid, h, w), (0, 0, 0, columns - w, 0, rows - h)) for h, w in shapes.tolist()]
    return torch.stack(canvases).flatten(1, 2).index_select(0, which)


def resize_grid_inside(
    grid: Float[Tensor, "h w d"], inside: Bool[Tensor, "b rows columns"], resize: Resize
) -> Float[Tensor, "b cells d"]:
    """As `grid_for_each`, where `inside` says which cells of the canvas each image has: those of a rectangle, top-left."""
    extents = torch.stack([inside.any(2).sum(1), inside.any(1).sum(1)], 1)
    rows, columns = inside.shape[1:]
    return resize_grid_per_sample(grid, extents, rows, columns, resize)


def sincos_2d(dim: int, grid: tuple[int, int]) -> Float[Tensor, "1 cells d"]:
    """Of a class token, which has zeros, and of a grid's cells in raster order (MAE's official code).

    The first half of the width tells the column, the second the row; each half is sines, then cosines, of wavelengths
    that grow from 2π to 10,000 · 2π (Vaswani et al. 2017, section 3.5). Raises ValueError where the width is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"positions of sines and cosines need a width divisible by 4, not {dim}")
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in (columns, rows)]
    cells = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
    return torch.cat([torch.zeros(1, dim), cells.float()])[None]


def cubic(x: Float[Tensor, " n"], at: Float[Tensor, " m"]) -> Float[Tensor, "m n"]:
    """The matrix that takes values at the points `x` (ascending, at least four) to those of their spline at `at`.

    The spline has no knots at the second point and the last but one ("not-a-knot"). Beyond `x` it keeps its last value.
    Raises ValueError for fewer points.
    """
    if len(x) < 4:
        raise ValueError(f"a cubic spline goes through at least 4 points, not {len(x)}")
    n, eye = len(x), torch.eye(len(x), dtype=torch.float64)
    x, at = x.double(), at.double().clamp(x[0].item(), x[-1].item())
    step = x.diff()
    slope = eye.diff(dim=0) / step[:, None]
    bends = torch.zeros(n, n, dtype=torch.float64)  # the second derivatives: bends @ them = asked @ values
    asked = torch.zeros(n, n, dtype=torch.float64)
    for i in range(1, n - 1):
        bends[i, i - 1 : i + 2] = torch.stack([step[i - 1], 2 * (step[i - 1] + step[i]), step[i]])
        asked[i] = 6 * (slope[i] - slope[i - 1])
    for row, i in ((0, 1), (n - 1, n - 2)):  # the third derivative goes on across these points
        bends[row, i - 1 : i + 2] = torch.stack([step[i], -step[i - 1] - step[i], step[i - 1]])
    second = torch.linalg.solve(bends, asked)
    k = torch.searchsorted(x, at, right=True).clamp(1, n - 1) - 1  # the piece that each point lies in
    h = step[k][:, None]
    b = (at - x[k])[:, None] / h
    a = 1 - b
    return a * eye[k] + b * eye[k + 1] + h * h / 6 * ((a**3 - a) * second[k] + (b**3 - b) * second[k + 1])


class RelativePositions(nn.Module):
    """One table for all layers: a bias per head, for each way in which two tokens can stand to each other.

    Two patches differ by rows and columns, two words by places; the class token of each modality asks, is asked, and asks
    itself, alike for all; and all pairs of different modalities share one row per direction (VLMo's official code; BEiT,
    Bao et al., ICLR 2022, for the image part). `grid` and `text_length` are the farthest that patches and words may lie.
    """

    def __init__(self, layers: int, num_heads: int, grid: tuple[int, int], text_length: int):
        super().__init__()
        self.layers, self.grid, self.text_length = layers, grid, text_length
        patches = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        # the order of rows: patches, image class token, text to image, image to text, words, text class token
        self.of_cls = {"image": patches, "text": patches + 5 + 2 * text_length - 3}
        self.across = {"text": patches + 3, "image": patches + 4}
        self.same_word = patches + 5 + text_length - 2
        self.table = nn.Parameter(torch.zeros(patches + 5 + 2 * text_length, layers * num_heads))

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
            real = layout.mask[:, start:end].unflatten(1, span.grid)
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
