"""Positions that are not learned: sines and cosines of a patch's row and column."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def sincos(width: int, grid: tuple[int, int]) -> Float[Tensor, "1 cells d"]:
    """Of a class token, which has zeros, and of a grid's cells in raster order (MAE's official code).

    The first half of the width tells the column, the second the row; each half is sines, then cosines, of wavelengths
    that grow from 2π to 10,000 · 2π (Vaswani et al. 2017, section 3.5). Raises ValueError where the width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"positions of sines and cosines need a width divisible by 4, not {width}")
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in (columns, rows)]
    cells = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
    return torch.cat([torch.zeros(1, width), cells.float()])[None]
