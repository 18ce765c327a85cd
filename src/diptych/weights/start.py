"""Beginning one paper's model with another's weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from diptych.layers.position import resize_bilinear
from diptych.weights.names import load_strict


def start_vilt_from_vit(vilt: nn.Module, vit: Mapping[str, Tensor]) -> None:
    """ViLT's patches, blocks and final norm from a ViT's (our names), as the paper starts from ImageNet's (section 4.1).

    Text embeddings, modality types and pooler stay as they are; a classifier is left behind; a position grid of another
    size is resized. Raises WeightsError naming what does not fit.
    """
    state = vilt.state_dict()
    renamed = {
        name if name.startswith("patches.") else f"transformer.{name}": tensor
        for name, tensor in vit.items()
        if not name.startswith("head.")
    }
    position, grid = renamed.get("patches.position"), vilt.patches.grid
    if position is not None and position.shape[1] != 1 + grid[0] * grid[1]:
        side = round((position.shape[1] - 1) ** 0.5)
        cells = resize_bilinear(position[0, 1:].unflatten(0, (side, -1)), *grid).flatten(0, 1)
        renamed["patches.position"] = position[:, :1].new_empty(1, 1 + len(cells), cells.shape[1])
        renamed["patches.position"][:, :1], renamed["patches.position"][:, 1:] = position[:, :1], cells
    load_strict(vilt, state | renamed, "the ViT to start from")
