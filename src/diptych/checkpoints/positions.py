"""Positions that other image sizes resize when a checkpoint is loaded: a grid that is added, or a table of relative ones.

A run's own weights in a model for pictures of another size: what it learned of positions is resized.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.position import RelativePositions, Resize, resize_table

Grid = tuple[int, int]


@runtime_checkable
class Positions(Protocol):
    """Positions by their official name and ours."""

    @property
    def official(self) -> str: ...

    @property
    def ours(self) -> str: ...

    def is_square(self, position: Tensor) -> bool:
        """Whether the official weight is of a square grid, so that its shape tells the grid."""
        ...

    def fit(self, position: Tensor, old: Grid, new: Grid) -> Tensor:
        """Our weight, of another grid, as the official code fits it. Raises ValueError where it cannot be."""
        ...


@dataclass(frozen=True)
class Absolute:
    """A position for each cell of a grid, after `leading` ones of class tokens."""

    official: str
    ours: str
    resize: Resize
    leading: int = 1

    def is_square(self, position: Tensor) -> bool:
        cells = position.shape[-2] - self.leading if position.dim() >= 2 else 0
        return math.isqrt(max(cells, 0)) ** 2 == cells

    def fit(self, position: Tensor, old: Grid, new: Grid) -> Tensor:
        return resize_positions(position, old, new, self.resize, self.leading)


@dataclass(frozen=True)
class Relative:
    """A bias for each way in which two tokens can stand to each other: patches', then `others`, which stay."""

    official: str
    ours: str
    others: int

    def is_square(self, position: Tensor) -> bool:
        side = math.isqrt(max(position.shape[0] - self.others, 0))
        return side % 2 == 1 and side**2 == position.shape[0] - self.others

    def fit(self, position: Tensor, old: Grid, new: Grid) -> Tensor:
        return resize_table(position, old, new)


def resize_positions(position: Tensor, old: Grid, new: Grid, resize: Resize, leading: int = 1) -> Tensor:
    """(1, leading + old cells, d) to (1, leading + new cells, d); class tokens' positions stay."""
    cells = resize(position[0, leading:].unflatten(0, old), *new).flatten(0, 1)
    return torch.cat([position[:, :leading], cells[None]], 1)


def refit(module: nn.Module, state: Mapping[str, Tensor], grid: Grid | None) -> dict[str, Tensor]:
    """`state`, of a model whose pictures had `grid` patches, in the shapes that `module` has for its own grid. Each table of
    positions is resized as its paper's code does where it fine-tunes on larger pictures.
    """
    fitted = dict(state)
    for name, part in module.named_modules():
        if isinstance(part, PatchEmbedding) and (at := f"{name}.position") in state and grid and grid != part.grid:
            fitted[at] = resize_positions(state[at], grid, part.grid, part.resize, part.unread + 1)
        if isinstance(part, RelativePositions) and (at := f"{name}.table") in state and grid and grid != part.grid:
            fitted[at] = resize_table(state[at], grid, part.grid)
    return fitted
