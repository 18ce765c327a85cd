"""Resizing of position embeddings to another image size, when an official checkpoint or a run's weights are loaded."""

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
    """The position embedding of a system, by its official name and ours, and how it is resized."""

    @property
    def official(self) -> str: ...

    @property
    def ours(self) -> str: ...

    def is_square(self, position: Tensor) -> bool:
        """Whether the official weight fits a square grid, so that the grid follows from its shape."""
        ...

    def resized(self, position: Tensor, old: Grid, new: Grid) -> Tensor:
        """Our weight, resized from grid `old` to grid `new` (rows, columns) as the official code does it.

        Raises:
            ValueError: it cannot be resized.
        """
        ...


@dataclass(frozen=True)
class AbsolutePositions:
    """One embedding for each cell of a grid, added to the patch; `leading` embeddings of class tokens come first."""

    official: str
    ours: str
    resize: Resize
    leading: int = 1

    def is_square(self, position: Tensor) -> bool:
        cells = position.shape[-2] - self.leading if position.dim() >= 2 else 0
        return math.isqrt(max(cells, 0)) ** 2 == cells

    def resized(self, position: Tensor, old: Grid, new: Grid) -> Tensor:
        return resize_positions(position, old, new, self.resize, self.leading)


@dataclass(frozen=True)
class RelativeBias:
    """A table of attention biases by relative position: one row for each offset of two patches, then `others` rows for
    other pairs of tokens, which are not resized.
    """

    official: str
    ours: str
    others: int

    def is_square(self, position: Tensor) -> bool:
        side = math.isqrt(max(position.shape[0] - self.others, 0))
        return side % 2 == 1 and side**2 == position.shape[0] - self.others

    def resized(self, position: Tensor, old: Grid, new: Grid) -> Tensor:
        return resize_table(position, old, new)


def resize_positions(position: Tensor, old: Grid, new: Grid, resize: Resize, leading: int = 1) -> Tensor:
    """Positions (1, leading + old cells, d) resized to (1, leading + new cells, d); `leading` rows are unchanged."""
    cells = resize(position[0, leading:].unflatten(0, old), *new).flatten(0, 1)
    return torch.cat([position[:, :leading], cells[None]], 1)


def resize_state(module: nn.Module, state: Mapping[str, Tensor], grid: Grid | None) -> dict[str, Tensor]:
    """The state of a model with position grid `grid` (rows, columns), resized to the grid of `module`.

    Each table of positions is resized as the paper's code does it for fine-tuning on larger images.
    """
    resized = dict(state)
    for name, part in module.named_modules():
        if isinstance(part, PatchEmbedding) and (at := f"{name}.position") in state and grid and grid != part.grid:
            resized[at] = resize_positions(state[at], grid, part.grid, part.resize, part.num_unused_positions + 1)
        if isinstance(part, RelativePositions) and (at := f"{name}.table") in state and grid and grid != part.grid:
            resized[at] = resize_table(state[at], grid, part.grid)
    return resized
