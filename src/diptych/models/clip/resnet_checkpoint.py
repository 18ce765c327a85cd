"""CLIP's weights, of the ResNet form: OpenAI's names, which are open_clip's too (whose models of this form have QuickGELU)."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, CheckpointAdapter, OfficialConfig, State, count, grid_of, shape
from diptych.checkpoints.mapping import ONE, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.read import WeightsError
from diptych.models.clip.checkpoint import (
    SIZES,
    activation,
    contrasting,
    heads_told,
    part,
    task,
    text_names,
    text_shape,
)
from diptych.models.clip.resnet import CLIPResNet

STAGES = 4
NORM = {name: name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
THREE = {
    **{f"conv{i}.weight": f"conv{i}.weight" for i in (1, 2, 3)},
    **{f"bn{i}.{name}": f"bn{i}.{name}" for i in (1, 2, 3) for name in NORM},
}
"""Three convolutions, each with its norm: the stem, and a bottleneck."""

SHORTCUT = {"downsample.0.weight": "downsample.0.weight", **prefixed("downsample.1.", "downsample.1.", NORM)}
POOL = {
    "positional_embedding": "model.pool.position",
    **weight_and_bias("q_proj", "model.pool.attention.query"),
    **weight_and_bias("k_proj", "model.pool.attention.key"),
    **weight_and_bias("v_proj", "model.pool.attention.value"),
    **weight_and_bias("c_proj", "heads.contrast.image"),
}


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of names that a checkpoint is read and written by."""
    table = prefixed("visual.", "model.image.", THREE) | prefixed("visual.attnpool.", "", POOL)
    for stage, depth in enumerate(arguments["depths"]):
        for i in range(depth):
            parts = THREE | (SHORTCUT if i == 0 else {})
            table |= prefixed(f"visual.layer{stage + 1}.{i}.", f"model.image.stages.{stage}.{i}.", parts)
    table |= {"logit_scale": "heads.contrast.scale.log"}
    return text_names() | KeyMapping(table, ignored=SIZES, forms={"visual.attnpool.positional_embedding": ONE})


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
    """The arguments of models.clip_resnet.CLIPResNet. Raises WeightsError."""
    cells, features = shape(state, "visual.attnpool.positional_embedding", 2)
    depths = tuple(count(state, f"visual.layer{stage + 1}", "bn1.weight") for stage in range(STAGES))
    if not all(depths):
        raise WeightsError(f"stages of {depths} blocks make no ResNet; is this another model's checkpoint?")
    return text_shape(state, told) | {
        "dim": shape(state, "visual.conv3.weight", 4)[0],
        "depths": depths,
        "num_heads": heads_told(features, told, part(told, "vision_cfg"), "vision_heads"),
        "grid": grid_of(cells - 1, told.get("grid"), "visual.attnpool.positional_embedding"),
        "activation": activation(told, "quick_gelu"),
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that a checkpoint was trained in."""
    return contrasting(CLIPResNet(**arguments))


SYSTEM = CheckpointAdapter(
    name="clip_resnet",
    matches=lambda state: "visual.attnpool.positional_embedding" in state and "token_embedding.weight" in state,
    task=task,
    infer=infer,
    names=names,
    build=build,
)
