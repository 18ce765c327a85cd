"""Checkpoints of CLIP with a ResNet: OpenAI's weight names, which open_clip uses too (with QuickGELU)."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    State,
    config_grid,
    config_of,
    count_layers,
    infer_grid,
    shape_of,
)
from diptych.checkpoints.mapping import UNSQUEEZED, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig
from diptych.checkpoints.read import WeightsError
from diptych.models.clip.checkpoint import (
    SIZES,
    activation,
    pretraining_step,
    task,
    text_names,
    text_shape,
    tower_num_heads,
)
from diptych.models.clip.config import CLIPResNetConfig

STAGES = 4
NORM = {name: name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
THREE = {
    **{f"conv{i}.weight": f"conv{i}.weight" for i in (1, 2, 3)},
    **{f"bn{i}.{name}": f"bn{i}.{name}" for i in (1, 2, 3) for name in NORM},
}
"""Three convolutions, each with a batch norm: the stem, or a bottleneck block."""

SHORTCUT = {"downsample.0.weight": "downsample.0.weight", **prefixed("downsample.1.", "downsample.1.", NORM)}
POOL = {
    "positional_embedding": "model.pool.position",
    **weight_and_bias("q_proj", "model.pool.attention.query"),
    **weight_and_bias("k_proj", "model.pool.attention.key"),
    **weight_and_bias("v_proj", "model.pool.attention.value"),
    **weight_and_bias("c_proj", "heads.itc.image"),
}


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments."""
    table = prefixed("visual.", "model.image.", THREE) | prefixed("visual.attnpool.", "", POOL)
    for stage, depth in enumerate(arguments["depths"]):
        for i in range(depth):
            parts = THREE | (SHORTCUT if i == 0 else {})
            table |= prefixed(f"visual.layer{stage + 1}.{i}.", f"model.image.stages.{stage}.{i}.", parts)
    table |= {"logit_scale": "heads.itc.scale.log"}
    return text_names() | KeyMapping(
        table, ignored=SIZES, transforms={"visual.attnpool.positional_embedding": UNSQUEEZED}
    )


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of CLIPResNet for a checkpoint under official names. Raises WeightsError."""
    cells, features = shape_of(state, "visual.attnpool.positional_embedding", 2)
    depths = tuple(count_layers(state, f"visual.layer{stage + 1}", "bn1.weight") for stage in range(STAGES))
    if not all(depths):
        raise WeightsError(
            f"stages of {depths} blocks; expected at least one block in each stage of the ResNet; "
            "is this another model's checkpoint?"
        )
    return text_shape(state, config) | {
        "dim": shape_of(state, "visual.conv3.weight", 4)[0],
        "depths": depths,
        "num_heads": tower_num_heads(features, config, "num_heads", "vision_cfg", "vision_heads"),
        "grid": infer_grid(cells - 1, config_grid(config), "visual.attnpool.positional_embedding"),
        "activation": activation(config, "quick_gelu"),
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a checkpoint."""
    return pretraining_step(config_of(CLIPResNetConfig, arguments).build())


ADAPTER = CheckpointAdapter(
    name="clip_resnet",
    config_class=CLIPResNetConfig,
    matches=lambda state: "visual.attnpool.positional_embedding" in state and "token_embedding.weight" in state,
    task=task,
    infer=infer,
    names=names,
    build=build,
)
