"""Beginning one paper's model with another's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from diptych.layers.position import resize_bilinear
from diptych.models.vilt import ViLT
from diptych.weights.positions import resize_positions
from diptych.weights.read import WeightsError
from diptych.weights.strict import load_strict


def start_vilt_from_vit(vilt: ViLT, vit: Mapping[str, Tensor]) -> list[str]:
    """ViLT's patches, blocks and final norm from a ViT's (our names), as the paper starts from ImageNet's (section 4.1).

    Text embeddings, modality types and pooler stay as they are; a classifier is left behind; a square position grid of
    another size is resized. Gives the names that were loaded. Raises WeightsError naming what does not fit.
    """
    loaded = {
        name if name.startswith("patches.") else f"transformer.{name}": tensor
        for name, tensor in vit.items()
        if not name.startswith("head.")
    }
    wanted = [n for n in vilt.state_dict() if n.startswith(("patches.", "transformer.blocks.", "transformer.norm."))]
    missing = [name.removeprefix("transformer.") for name in wanted if name not in loaded]
    if missing:
        raise WeightsError(f"the ViT to start from lacks {missing[0]}; is it another model's?")
    loaded["patches.position"] = _fitted(loaded["patches.position"], vilt.patches.grid)
    load_strict(vilt, vilt.state_dict() | loaded, "the ViT to start from")
    return list(loaded)


def _fitted(position: Tensor, grid: tuple[int, int]) -> Tensor:
    cells = position.shape[1] - 1
    if cells == grid[0] * grid[1]:
        return position
    side = math.isqrt(cells)
    if side * side != cells:
        raise WeightsError(f"the ViT to start from has {cells} positions, which are no square grid to resize")
    return resize_positions(position, (side, side), grid, resize_bilinear)
