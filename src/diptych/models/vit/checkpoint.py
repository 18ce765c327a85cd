"""ViT's weights: timm's names, and the shapes that they tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    OfficialConfig,
    State,
    count,
    grid_of,
    has,
    image_heads,
    shape,
)
from diptych.checkpoints.mapping import FLAT, KeyMapping, weight_and_bias
from diptych.checkpoints.positions import Absolute
from diptych.models.vit.model import ViT
from diptych.modules.position import resize_bicubic
from diptych.tasks.classification import Classification

PATCHES = {
    "cls_token": "patches.cls",
    "pos_embed": "patches.position",
    **weight_and_bias("patch_embed.proj", "patches.project"),
}
BLOCK = {
    **weight_and_bias("blocks.{i}.norm1", "blocks.{i}.norm1"),
    **weight_and_bias("blocks.{i}.attn.qkv", "blocks.{i}.attention.qkv"),
    **weight_and_bias("blocks.{i}.attn.proj", "blocks.{i}.attention.out"),
    **weight_and_bias("blocks.{i}.norm2", "blocks.{i}.norm2"),
    **weight_and_bias("blocks.{i}.mlp.fc1", "blocks.{i}.feedforward.grow"),
    **weight_and_bias("blocks.{i}.mlp.fc2", "blocks.{i}.feedforward.shrink"),
}
"""timm's names of a pre-norm block, which ViT and ViLT share."""

REPRESENTATION = weight_and_bias("pre_logits.fc", "representation")
"""The hidden layer before an ImageNet-21k classifier."""

NO_POOLER = "Hugging Face's pooler, which the paper does not have"
_ENCODER = KeyMapping(
    {
        official: f"model.{ours}"
        for official, ours in {**PATCHES, **BLOCK, **REPRESENTATION, **weight_and_bias("head", "head")}.items()
    },
    ignored={"pooler.dense.weight": NO_POOLER, "pooler.dense.bias": NO_POOLER},
    forms={"patch_embed.proj.weight": FLAT},
)
NAMES = {
    "cls": _ENCODER | KeyMapping(weight_and_bias("norm", "model.norm")),
    "average": _ENCODER | KeyMapping(weight_and_bias("fc_norm", "model.norm")),
}
"""By pooling: timm calls the one final norm `fc_norm` where it stands behind average pooling."""


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of names that a checkpoint is read and written by."""
    return NAMES[arguments["pooling"]]


def task(state: State) -> str:
    """What an officially named checkpoint was trained for; "encoder" where it has no head."""
    return "classification" if has(state, "head.") else "encoder"


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
    """The arguments of models.vit.ViT that a timm-named checkpoint was made with; see `encoder_shape`."""
    return encoder_shape(state, "", told.get("num_heads", told.get("num_attention_heads")), told.get("grid")) | {
        "num_classes": shape(state, "head.weight", 2)[0] if has(state, "head.") else 0,
        "representation": shape(state, "pre_logits.fc.weight", 2)[0] if has(state, "pre_logits.fc.") else 0,
        "pooling": "average" if has(state, "fc_norm.") else "cls",
    }


def build(arguments: Mapping[str, Any], task: str, state: State) -> nn.Module:
    """The step that an imported checkpoint belongs to. An encoder has no loss of its own: it stands under "model" alone."""
    model = ViT(**arguments)
    return (
        Classification(model, arguments["num_classes"]) if task == "classification" else nn.ModuleDict({"model": model})
    )


def encoder_shape(state: State, prefix: str, heads: object, grid: tuple[int, int] | None) -> dict[str, Any]:
    """Width, depth, hidden width, patch and position grid of the ViT under `prefix`.

    Two things stand in no shape: `heads` defaults to the published number (`system.image_heads`), `grid` to a square. Raises WeightsError.
    """
    _, _, width = shape(state, f"{prefix}cls_token", 3)
    *_, cells, _ = shape(state, f"{prefix}pos_embed", 3)
    *_, patch = shape(state, f"{prefix}patch_embed.proj.weight", 4)
    hidden, _ = shape(state, f"{prefix}blocks.0.mlp.fc1.weight", 2)
    return {
        "dim": width,
        "depth": count(state, f"{prefix}blocks", "norm1.weight"),
        "num_heads": image_heads(width, heads),
        "mlp_dim": hidden,
        "patch_size": patch,
        "grid": grid_of(cells - 1, grid, f"{prefix}pos_embed"),
    }


SYSTEM = CheckpointAdapter(
    name="vit",
    matches=lambda state: "patch_embed.proj.weight" in state and "cls_token" in state and "mask_token" not in state,
    task=task,
    names=names,
    infer=infer,
    build=build,
    positions=(Absolute("pos_embed", "model.patches.position", resize_bicubic),),
)
