"""Beginning one paper's model with another's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from diptych.layers.embed import PatchEmbedding
from diptych.layers.position import Resize, resize_bilinear
from diptych.models.vilt import ViLT
from diptych.models.vlmo import VLMo
from diptych.state import weights
from diptych.weights.positions import resize_positions
from diptych.weights.read import WeightsError
from diptych.weights.strict import load_strict

CLASSIFIER = ("head.", "representation.")  # of a ViT, with the hidden layer before it


def start_vilt_from_vit(vilt: ViLT, vit: Mapping[str, Tensor]) -> list[str]:
    """ViLT's patches, blocks and final norm from a ViT's (our names), as the paper starts from ImageNet's (section 4.1).

    Text embeddings, modality types and pooler stay as they are; a classifier is left behind; a square position grid of
    another size is resized. Gives the names that were loaded. Raises WeightsError naming what does not fit.
    """
    loaded = {
        name if name.startswith("patches.") else f"transformer.{name}": tensor
        for name, tensor in vit.items()
        if not name.startswith(CLASSIFIER)
    }
    wanted = [n for n in vilt.state_dict() if n.startswith(("patches.", "transformer.blocks.", "transformer.norm."))]
    missing = [name.removeprefix("transformer.") for name in wanted if name not in loaded]
    if missing:
        raise WeightsError(f"the ViT to start from lacks {missing[0]}; is it another model's?")
    loaded["patches.position"] = fitted(loaded["patches.position"], vilt.patches.grid, resize_bilinear)
    load_strict(vilt, vilt.state_dict() | loaded, "the ViT to start from")
    return list(loaded)


def start_vlmo_from_vit(vlmo: VLMo, vit: Mapping[str, Tensor]) -> list[str]:
    """VLMo's patches, attention, experts of images and final norm from a ViT's (our names): its stage on images alone.

    Everything else stays as it is. Exact but for the modality's vector: keys' bias, which VLMo has not, adds the same to all
    scores of a query. Differs: the paper starts from BEiT, whose relative positions and LayerScale a ViT lacks, so this
    is for models with positions that are added (base-plus). Gives our names of what was loaded. Raises WeightsError.
    """
    if not isinstance(vlmo.patches, PatchEmbedding):
        raise WeightsError(
            "a VLMo with relative positions cannot start from a ViT, which adds positions to its patches"
        )
    loaded: dict[str, Tensor] = {}
    for name, tensor in vit.items():
        if name.startswith(CLASSIFIER):
            continue
        ours = name if name.startswith("patches.") else f"transformer.{name}"
        ours = ours.replace(".norm1.", ".norm.").replace(".norm2.", ".apart.image.norm.")
        ours = ours.replace(".feedforward.", ".apart.image.feedforward.")
        if ours.endswith(".qkv.bias"):
            part = ours.removesuffix("qkv.bias")
            loaded[f"{part}query_bias"], _, loaded[f"{part}value_bias"] = tensor.chunk(3)
        else:
            loaded[ours] = tensor
    apart = ("words.", "modality.", "transformer.pooler.")
    missing = [
        name
        for name in weights(vlmo)
        if name not in loaded
        and not name.startswith(apart)
        and not any(part in name for part in (".apart.text.", ".together.", ".scale"))
    ]
    if missing:
        raise WeightsError(f"the ViT to start from lacks {missing[0]}; is it another model's?")
    loaded["patches.position"] = fitted(loaded["patches.position"], vlmo.patches.grid, vlmo.patches.resize)
    load_strict(vlmo, weights(vlmo) | loaded, "the ViT to start from")
    return list(loaded)


def fitted(position: Tensor, grid: tuple[int, int], resize: Resize) -> Tensor:
    """A ViT's positions for another grid. Raises WeightsError where its own is not square."""
    cells = position.shape[1] - 1
    if cells == grid[0] * grid[1]:
        return position
    side = math.isqrt(cells)
    if side * side != cells:
        raise WeightsError(f"the ViT to start from has {cells} positions, which are no square grid to resize")
    return resize_positions(position, (side, side), grid, resize)
