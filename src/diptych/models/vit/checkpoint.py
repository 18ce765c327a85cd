"""ViT's checkpoints: timm's weight names, and sizes inferred from shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    State,
    config_grid,
    config_of,
    count_layers,
    has_prefix,
    infer_grid,
    infer_image_num_heads,
    shape_of,
)
from diptych.checkpoints.mapping import CONV_AS_LINEAR, KeyMapping, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig
from diptych.checkpoints.positions import AbsolutePositions
from diptych.models.vit.config import ViTConfig
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
    **weight_and_bias("blocks.{i}.mlp.fc1", "blocks.{i}.feedforward.fc1"),
    **weight_and_bias("blocks.{i}.mlp.fc2", "blocks.{i}.feedforward.fc2"),
}
"""timm's names of the pre-norm blocks, and ours; ViLT's are the same."""

REPRESENTATION = weight_and_bias("pre_logits.fc", "representation")
"""The hidden layer before an ImageNet-21k classifier."""

NO_POOLER = "Hugging Face's pooler, which the paper does not have"
_ENCODER = KeyMapping(
    {
        official: f"model.{ours}"
        for official, ours in {**PATCHES, **BLOCK, **REPRESENTATION, **weight_and_bias("head", "head")}.items()
    },
    ignored={"pooler.dense.weight": NO_POOLER, "pooler.dense.bias": NO_POOLER},
    transforms={"patch_embed.proj.weight": CONV_AS_LINEAR},
)
NAMES = {
    "cls": _ENCODER | KeyMapping(weight_and_bias("norm", "model.norm")),
    "average": _ENCODER | KeyMapping(weight_and_bias("fc_norm", "model.norm")),
}
"""By pooling: timm calls the final norm `fc_norm` if it comes after average pooling."""


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments."""
    return NAMES[arguments["pooling"]]


def task(state: State) -> str:
    """The task that a checkpoint under official names was trained for; "encoder" if it has no head."""
    return "classification" if has_prefix(state, "head.") else "encoder"


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of ViT for a checkpoint under timm's names. Raises WeightsError."""
    return encoder_shape(state, "", config, "num_heads", "num_heads", "num_attention_heads") | {
        "num_classes": shape_of(state, "head.weight", 2)[0] if has_prefix(state, "head.") else 0,
        "representation": shape_of(state, "pre_logits.fc.weight", 2)[0] if has_prefix(state, "pre_logits.fc.") else 0,
        "pooling": "average" if has_prefix(state, "fc_norm.") else "cls",
    }


def build(arguments: Mapping[str, Any], task: str, state: State) -> nn.Module:
    """The training step of a checkpoint, or the model under "model" if it has no classifier."""
    model = config_of(ViTConfig, arguments).build()
    return (
        Classification(model, arguments["num_classes"]) if task == "classification" else nn.ModuleDict({"model": model})
    )


def encoder_shape(state: State, prefix: str, config: OfficialConfig, argument: str, *keys: str) -> dict[str, Any]:
    """The constructor arguments of the ViT under `prefix`. Raises WeightsError.

    Args:
        argument: the model's name of the number of attention heads, and `keys` the official ones
            (`adapter.infer_image_num_heads`).
    """
    _, _, width = shape_of(state, f"{prefix}cls_token", 3)
    *_, cells, _ = shape_of(state, f"{prefix}pos_embed", 3)
    *_, patch = shape_of(state, f"{prefix}patch_embed.proj.weight", 4)
    hidden, _ = shape_of(state, f"{prefix}blocks.0.mlp.fc1.weight", 2)
    return {
        "dim": width,
        "depth": count_layers(state, f"{prefix}blocks", "norm1.weight"),
        "num_heads": infer_image_num_heads(width, config, argument, *keys),
        "mlp_dim": hidden,
        "patch_size": patch,
        "grid": infer_grid(cells - 1, config_grid(config), f"{prefix}pos_embed"),
    }


ADAPTER = CheckpointAdapter(
    name="vit",
    config_class=ViTConfig,
    matches=lambda state: "patch_embed.proj.weight" in state and "cls_token" in state and "mask_token" not in state,
    task=task,
    names=names,
    infer=infer,
    build=build,
    positions=(AbsolutePositions("pos_embed", "model.patches.position", resize_bicubic),),
)
