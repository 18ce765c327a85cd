"""A run's own weights in a model for pictures of another size: what it learned of positions is resized."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from diptych.layers.embed import PatchEmbedding
from diptych.layers.relative import RelativePositions, resize_table
from diptych.weights.positions import Grid, resize_positions


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
