"""ViT's weights: timm's names, and the shapes that they tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from diptych.models.vit import ViT
from diptych.tasks.classification import Classification
from diptych.weights.names import Names, both
from diptych.weights.read import WeightsError

PATCHES = {
    "cls_token": "patches.cls",
    "pos_embed": "patches.position",
    **both("patch_embed.proj", "patches.project"),
}
BLOCK = {
    **both("blocks.{i}.norm1", "blocks.{i}.norm1"),
    **both("blocks.{i}.attn.qkv", "blocks.{i}.attention.qkv"),
    **both("blocks.{i}.attn.proj", "blocks.{i}.attention.out"),
    **both("blocks.{i}.norm2", "blocks.{i}.norm2"),
    **both("blocks.{i}.mlp.fc1", "blocks.{i}.feedforward.grow"),
    **both("blocks.{i}.mlp.fc2", "blocks.{i}.feedforward.shrink"),
}
"""timm's names of a pre-norm block, which ViT and ViLT share."""

NO_POOLER = "Hugging Face's pooler, which the paper does not have"
_ENCODER = Names(
    {official: f"model.{ours}" for official, ours in {**PATCHES, **BLOCK, **both("head", "head")}.items()},
    dead={"pooler.dense.weight": NO_POOLER, "pooler.dense.bias": NO_POOLER},
    flat=frozenset({"patch_embed.proj.weight"}),
)
NAMES = {
    "cls": _ENCODER | Names(both("norm", "model.norm")),
    "average": _ENCODER | Names(both("fc_norm", "model.norm")),
}
"""By pooling: timm calls the one final norm `fc_norm` where it stands behind average pooling."""


def names(state: Mapping[str, Tensor]) -> Names:
    """The table of names that an officially named checkpoint is read by."""
    return NAMES["average" if "fc_norm.weight" in state else "cls"]


def task(state: Mapping[str, Tensor]) -> str:
    """What an officially named checkpoint was trained for; "encoder" where it has no head."""
    return "classification" if "head.weight" in state else "encoder"


def infer(state: Mapping[str, Tensor], heads: int | None = None, grid: tuple[int, int] | None = None) -> dict[str, Any]:
    """The arguments of models.vit.ViT that a timm-named checkpoint was made with; see `encoder_shape`."""
    return encoder_shape(state, "", heads, grid) | {
        "classes": shape(state, "head.weight", 2)[0] if "head.weight" in state else 0,
        "pooling": "average" if "fc_norm.weight" in state else "cls",
    }


def build(arguments: Mapping[str, Any], task: str, state: Mapping[str, Tensor]) -> nn.Module:
    """The step that an imported checkpoint belongs to. An encoder has no loss of its own: it stands under "model" alone."""
    model = ViT(**arguments)
    return Classification(model, arguments["classes"]) if task == "classification" else nn.ModuleDict({"model": model})


def encoder_shape(
    state: Mapping[str, Tensor], prefix: str, heads: int | None, grid: tuple[int, int] | None
) -> dict[str, Any]:
    """Width, depth, hidden width, patch and position grid of the ViT under `prefix`.

    Two things stand in no shape: `heads` defaults to one per 64 of width, `grid` to a square. Raises WeightsError.
    """
    _, _, width = shape(state, f"{prefix}cls_token", 3)
    *_, cells, _ = shape(state, f"{prefix}pos_embed", 3)
    *_, patch = shape(state, f"{prefix}patch_embed.proj.weight", 4)
    hidden, _ = shape(state, f"{prefix}blocks.0.mlp.fc1.weight", 2)
    depth = sum(name.startswith(f"{prefix}blocks.") and name.endswith("norm1.weight") for name in state)
    side = math.isqrt(cells - 1)
    grid = grid or (side, side)
    if grid[0] * grid[1] != cells - 1:
        raise WeightsError(
            f"{prefix}pos_embed has {cells - 1} cells, which are no {grid[0]} × {grid[1]} grid; give --grid"
        )
    if heads is None and width % 64:
        raise WeightsError(f"width {width} is no multiple of 64, so the number of heads is unknown; give --heads")
    heads = heads or width // 64
    if heads < 1 or width % heads:
        raise WeightsError(f"width {width} does not divide into {heads} heads; give another --heads")
    return {"width": width, "depth": depth, "heads": heads, "hidden": hidden, "patch": patch, "grid": grid}


def shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """A weight's shape. Raises WeightsError where it is missing or has another number of dimensions."""
    if name not in state:
        raise WeightsError(f"missing weights: {name}; is this another model's checkpoint?")
    if state[name].dim() != dimensions or not state[name].numel():
        raise WeightsError(f"{name} is {tuple(state[name].shape)}, where {dimensions} dimensions are needed")
    return tuple(state[name].shape)
