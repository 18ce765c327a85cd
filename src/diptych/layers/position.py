"""Learned position grids, and how each family of papers resizes them: four resizers are in use, and they differ."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

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


def grid_for_each(
    grid: Float[Tensor, "h w d"], extents: Int[Tensor, "b 2"], rows: int, columns: int, resize: Resize
) -> Float[Tensor, "b cells d"]:
    """The grid resized to every image's own (rows, columns), on a canvas of rows × columns cells, zero outside the image.

    Images of one extent share one resize.
    """
    shapes, which = torch.unique(extents, dim=0, return_inverse=True)
    canvases = [F.pad(resize(grid, h, w), (0, 0, 0, columns - w, 0, rows - h)) for h, w in shapes.tolist()]
    return torch.stack(canvases).flatten(1, 2).index_select(0, which)


def grid_inside(
    grid: Float[Tensor, "h w d"], inside: Bool[Tensor, "b rows columns"], resize: Resize
) -> Float[Tensor, "b cells d"]:
    """As `grid_for_each`, where `inside` says which cells of the canvas each image has: those of a rectangle, top-left."""
    extents = torch.stack([inside.any(2).sum(1), inside.any(1).sum(1)], 1)
    rows, columns = inside.shape[1:]
    return grid_for_each(grid, extents, rows, columns, resize)
