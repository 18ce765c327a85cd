"""Position embeddings.

- Learned position grids, and their interpolation to other image sizes (papers use four different kinds).
- Fixed sine-cosine embeddings of a patch's row and column.
- Relative position bias of attention scores, and its interpolation by cubic splines (as in SciPy's
  `interp2d(kind="cubic")` along each axis of a grid).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.modules.tokens import Layout, Span

Resize = Callable[[Tensor, int, int], Tensor]  # (h, w, d), rows, columns -> (rows, columns, d)


def _interpolate(
    grid: Tensor, rows: int, columns: int, mode: str, align_corners: bool, antialias: bool = False
) -> Tensor:
    if grid.shape[:2] == (rows, columns):
        return grid
    image = grid.permute(2, 0, 1)[None]
    resized = F.interpolate(image, (rows, columns), mode=mode, align_corners=align_corners, antialias=antialias)
    return resized[0].permute(1, 2, 0)


def resize_bicubic(grid: Float[Tensor, "h w d"], rows: int, columns: int) -> Float[Tensor, "rows columns d"]:
    """Bicubic interpolation with antialiasing, as in timm's ViT."""
    return _interpolate(grid, rows, columns, mode="bicubic", align_corners=False, antialias=True)


def resize_bicubic_plain(grid: Float[Tensor, "h w d"], rows: int, columns: int) -> Float[Tensor, "rows columns d"]:
    """Bicubic interpolation without antialiasing, as in ALBEF, BLIP and BEiT-3."""
    return _interpolate(grid, rows, columns, mode="bicubic", align_corners=False)


def resize_bilinear(grid: Float[Tensor, "h w d"], rows: int, columns: int) -> Float[Tensor, "rows columns d"]:
    """Bilinear interpolation, corners not aligned: ViLT's, on loading a checkpoint of another image size."""
    return _interpolate(grid, rows, columns, mode="bilinear", align_corners=False)


def resize_aligned(grid: Float[Tensor, "h w d"], rows: int, columns: int) -> Float[Tensor, "rows columns d"]:
    """Bilinear interpolation with aligned corners: ViLT's, to each image's own grid (`visual_embed`)."""
    return _interpolate(grid, rows, columns, mode="bilinear", align_corners=True)


def resize_grid_per_sample(
    grid: Float[Tensor, "h w d"], extents: Int[Tensor, "b 2"], rows: int, columns: int, resize: Resize
) -> Float[Tensor, "b cells d"]:
    """The grid resized to each image's own (rows, columns), zero-padded to rows × columns cells.

    Images of equal extents share one resize.
    """
    shapes, shape_index = torch.unique(extents, dim=0, return_inverse=True)
    padded = [F.pad(resize(grid, h, w), (0, 0, 0, columns - w, 0, rows - h)) for h, w in shapes.tolist()]
    return torch.stack(padded).flatten(1, 2).index_select(0, shape_index)


def resize_grid_inside(
    grid: Float[Tensor, "h w d"], inside: Bool[Tensor, "b rows columns"], resize: Resize
) -> Float[Tensor, "b cells d"]:
    """Positions as from `resize_grid_per_sample`, for images whose mask `inside` is a rectangle at the top left."""
    extents = torch.stack([inside.any(2).sum(1), inside.any(1).sum(1)], 1)
    rows, columns = inside.shape[1:]
    return resize_grid_per_sample(grid, extents, rows, columns, resize)


def sincos_2d(dim: int, grid: tuple[int, int]) -> Float[Tensor, "1 cells d"]:
    """Sine-cosine position embeddings of a class token (zeros) and of a grid's cells in raster order.

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines, of
    wavelengths from 2π to 10,000 · 2π (Vaswani et al. 2017, section 3.5). Raises ValueError for a `dim` not divisible
    by 4.

    Source: MAE's official code.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine position embeddings need a dim divisible by 4, got {dim}")
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [coordinate.flatten()[:, None] * rates for coordinate in (columns, rows)]
    cells = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
    return torch.cat([torch.zeros(1, dim), cells.float()])[None]


def cubic(x: Float[Tensor, " n"], at: Float[Tensor, " m"]) -> Float[Tensor, "m n"]:
    """The matrix of cubic spline interpolation, from values at the points `x` (ascending) to values at the points `at`.

    Boundary condition: not-a-knot at the second and the last but one point. Beyond `x` the spline is constant. Raises
    ValueError for fewer than four points.
    """
    if len(x) < 4:
        raise ValueError(f"cubic spline interpolation needs at least 4 points, got {len(x)}")
    n, eye = len(x), torch.eye(len(x), dtype=torch.float64)
    x, at = x.double(), at.double().clamp(x[0].item(), x[-1].item())
    step = x.diff()
    slope = eye.diff(dim=0) / step[:, None]
    # linear system of the second derivatives: system @ second = right_side @ values
    system = torch.zeros(n, n, dtype=torch.float64)
    right_side = torch.zeros(n, n, dtype=torch.float64)
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = torch.stack([step[i - 1], 2 * (step[i - 1] + step[i]), step[i]])
        right_side[i] = 6 * (slope[i] - slope[i - 1])
    for row, i in ((0, 1), (n - 1, n - 2)):  # not-a-knot: the third derivative is continuous at these points
        system[row, i - 1 : i + 2] = torch.stack([step[i], -step[i - 1] - step[i], step[i - 1]])
    second = torch.linalg.solve(system, right_side)
    k = torch.searchsorted(x, at, right=True).clamp(1, n - 1) - 1  # the interval that each point lies in
    h = step[k][:, None]
    b = (at - x[k])[:, None] / h
    a = 1 - b
    return a * eye[k] + b * eye[k + 1] + h * h / 6 * ((a**3 - a) * second[k] + (b**3 - b) * second[k + 1])


def check_text_length(n: int, limit: int) -> None:
    """Raises ValueError if a text of `n` tokens is longer than a table of `limit` positions."""
    if n > limit:
        raise ValueError(f"text of {n} tokens, but the model has positions for {limit}")


class RelativePositions(nn.Module):
    """Relative position bias, one table for all layers: a bias per head for each relative position of query and key.

    The relative position of two patches is their difference in rows and columns, that of two words their distance.
    Class token to other tokens, other tokens to class token, and class token to itself have one entry each per
    modality. All pairs of different modalities share one entry per direction.

    `grid`, `text_length`: the largest patch grid and text length.

    Source: VLMo's official code; BEiT (Bao et al., ICLR 2022) for the image part.
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
        """The bias of each layer: heads × query columns × key columns.

        Raises ValueError for a text or a patch grid beyond the table's.
        """
        for number, span in enumerate(layout.spans):
            self._check(layout, number, span)
        index = torch.cat([torch.cat([self._between(a, b) for b in layout.spans], 1) for a in layout.spans])
        return F.embedding(index.to(self.table.device), self.table).permute(2, 0, 1).chunk(self.layers)

    def _check(self, layout: Layout, number: int, span: Span) -> None:
        """Padding may lie beyond the grid (it gets the bias of the grid's edge); patches of an image may not."""
        if span.name == "words":
            check_text_length(span.length + 1, self.text_length)
        rows, columns = self.grid
        if span.grid and (span.grid[0] > rows or span.grid[1] > columns):
            start, end = layout.bounds(number)
            mask = layout.mask[:, start:end].unflatten(1, span.grid)
            if mask[:, rows:].any() or mask[:, :, columns:].any():
                raise ValueError(f"image of more than the {rows} × {columns} patches that the model has positions for")

    def _between(self, query: Span, key: Span) -> Int[Tensor, "n m"]:
        """Table rows for each query column with each key column."""
        if query.modality != key.modality:
            row = self.across[query.modality]
        elif query.name == "cls":
            row = self.of_cls[query.modality] + (2 if key.name == "cls" else 0)
        elif key.name == "cls":
            row = self.of_cls[query.modality] + 1
        else:
            return self._patches(query, key) if query.grid and key.grid else self._words(query, key)
        return torch.full((query.length, key.length), row)

    def _words(self, query: Span, key: Span) -> Int[Tensor, "n m"]:
        return self.same_word + torch.arange(key.length) - torch.arange(query.length)[:, None]

    def _patches(self, query: Span, key: Span) -> Int[Tensor, "n m"]:
        assert query.grid and key.grid
        rows, columns = self.grid
        down = _grid_distance(query.grid, key.grid, 0).clamp(1 - rows, rows - 1)
        right = _grid_distance(query.grid, key.grid, 1).clamp(1 - columns, columns - 1)
        return (down + rows - 1) * (2 * columns - 1) + right + columns - 1


def _grid_distance(query: tuple[int, int], key: tuple[int, int], axis: int) -> Int[Tensor, "n m"]:
    """Signed distances from the key grid's cells to the query grid's cells, in rows (axis 0) or columns (axis 1)."""
    query_index, key_index = (
        torch.arange(grid[axis]).view(-1, 1) if axis == 0 else torch.arange(grid[axis]).view(1, -1)
        for grid in (query, key)
    )
    return query_index.expand(query).flatten()[:, None] - key_index.expand(key).flatten()


def resize_table(
    table: Float[Tensor, "rows biases"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "more biases"]:
    """A relative position table resized to another patch grid; the entries of words and class tokens are unchanged.

    The old distances are placed at the partial sums of a geometric series that ends at the largest new distance, and a
    cubic spline through them is evaluated at each whole distance. So biases of near patches hardly change, and those of
    the farthest old patches apply to the farthest new ones. Raises ValueError for grids of fewer than three rows or
    columns, which are too few points for a cubic spline.

    Source: BEiT's and VLMo's official code. Differs: grids that are not square are resized too, each axis by itself.
    """
    sides = [2 * side - 1 for side in old]
    patches = table[: sides[0] * sides[1]].double().unflatten(0, sides)
    down, right = (_stretch(a, b) for a, b in zip(old, new, strict=True))
    resized = torch.einsum("ir,jc,rcd->ijd", down, right, patches).flatten(0, 1)
    return torch.cat([resized.to(table.dtype), table[sides[0] * sides[1] :]])


def _stretch(old: int, new: int) -> Float[Tensor, "m n"]:
    """The interpolation matrix from biases at distances below `old` to those at distances below `new`, on one axis."""
    if old == new:
        return torch.eye(2 * old - 1, dtype=torch.float64)
    left, right, ratio = 1.01, 1.5, 1.0
    while right - left > 1e-6:  # bisection for the ratio of the series, to the official code's precision
        ratio = (left + right) / 2
        left, right = (left, ratio) if (1 - ratio ** (old - 1)) / (1 - ratio) > new - 1 else (ratio, right)
    distances = torch.cumsum(ratio ** torch.arange(old - 1, dtype=torch.float64), 0)
    points = torch.cat([-distances.flip(0), distances.new_zeros(1), distances])
    return cubic(points, torch.arange(1.0 - new, new, dtype=torch.float64))
