"""Checkpoints of CLIP with a ViT: OpenAI's weight names (the state_dict of its archive), which open_clip uses too.

The activation cannot be inferred from shapes: an OpenAI checkpoint has QuickGELU, an open_clip one GELU unless its
config says `quick_gelu`. So there are two systems with the same names, "clip" and "open_clip".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
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
    infer_image_num_heads,
    infer_num_heads,
    shape_of,
)
from diptych.checkpoints.mapping import (
    CONV_AS_LINEAR,
    TRANSPOSED,
    UNSQUEEZED,
    UNSQUEEZED_TWICE,
    KeyMapping,
    prefixed,
    weight_and_bias,
)
from diptych.checkpoints.official_config import OfficialConfig, stated
from diptych.checkpoints.positions import AbsolutePositions
from diptych.models.clip.config import CLIPConfig
from diptych.models.clip.model import CLIP
from diptych.models.clip.resnet import CLIPResNet
from diptych.modules.position import resize_bicubic
from diptych.objectives.itc import ITCLoss
from diptych.objectives.pretraining import Pretraining

RESBLOCK = {
    "attn.in_proj_weight": "attention.qkv.weight",
    "attn.in_proj_bias": "attention.qkv.bias",
    **weight_and_bias("attn.out_proj", "attention.out"),
    **weight_and_bias("ln_1", "norm1"),
    **weight_and_bias("ln_2", "norm2"),
    **weight_and_bias("mlp.c_fc", "feedforward.fc1"),
    **weight_and_bias("mlp.c_proj", "feedforward.fc2"),
}
"""OpenAI's names of a pre-norm block, and ours."""

SIZES: dict[str, str] = dict.fromkeys(
    ("input_resolution", "context_length", "vocab_size"), "a size, saved as a number in OpenAI's archive"
)


def blocks(official: str, ours: str) -> dict[str, str]:
    """The table of the transformer blocks of one encoder."""
    return prefixed(f"{official}resblocks.{{i}}.", f"{ours}blocks.{{i}}.", RESBLOCK)


def text_names(official: str = "") -> KeyMapping:
    """The text encoder and its projection, under an official prefix."""
    ours = {
        "token_embedding.weight": "model.text.word.weight",
        "positional_embedding": "model.text.position",
        **blocks("transformer.", "model.text."),
        **weight_and_bias("ln_final", "model.text.norm"),
        "text_projection": "heads.itc.text.weight",
    }
    return KeyMapping(prefixed(official, "", ours), transforms={f"{official}text_projection": TRANSPOSED})


PATCHES = KeyMapping(
    {
        "visual.conv1.weight": "model.image.patches.project.weight",
        "visual.class_embedding": "model.image.patches.cls",
        "visual.positional_embedding": "model.image.patches.position",
        **weight_and_bias("visual.ln_pre", "model.image.norm"),
        **blocks("visual.transformer.", "model.image."),
    },
    transforms={
        "visual.conv1.weight": CONV_AS_LINEAR,
        "visual.class_embedding": UNSQUEEZED_TWICE,
        "visual.positional_embedding": UNSQUEEZED,
    },
)
"""The ViT up to its last block."""

PROJECTED = KeyMapping(
    {"visual.proj": "heads.itc.image.weight", "logit_scale": "heads.itc.scale.log"},
    transforms={"visual.proj": TRANSPOSED},
)
NAMES = (
    text_names()
    | PATCHES
    | PROJECTED
    | KeyMapping(weight_and_bias("visual.ln_post", "model.image_norm"), ignored=SIZES)
)


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments."""
    return NAMES


def task(state: State) -> str:
    """Always "pretraining": CLIP has the ITC loss alone."""
    return "pretraining"


def tower_config(config: OfficialConfig, name: str) -> OfficialConfig:
    """The part of a nested open_clip config for one encoder; {} if there is none."""
    part = config.get(name)
    return part if isinstance(part, Mapping) else {}


def tower_num_heads(
    dim: int,
    config: OfficialConfig,
    argument: str,
    tower: str,
    flat: str,
    infer_heads: Callable[..., int] = infer_num_heads,
) -> int:
    """The number of attention heads of one encoder. Raises WeightsError.

    Args:
        argument: the constructor argument.
        tower: the encoder's part of an open_clip config ("heads", "head_width").
        flat: the key of the number in a config that is not nested.
        infer_heads: infers the number if the config does not state it.
    """
    if stated(config, argument) is None:
        head_width, heads = tower_config(config, tower).get("head_width"), stated(config, argument, flat)
        if isinstance(head_width, int) and head_width > 0:
            return infer_heads(dim, {"heads": dim // head_width}, argument, "heads")
        if isinstance(heads, str) and heads.endswith("// 64"):  # OpenAI's rule, which rounds down
            return infer_heads(dim, {"heads": dim // 64}, argument, "heads")
    return infer_heads(dim, config, argument, f"{tower}.heads", flat, "num_heads")


def image_shape(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of the ViT under "visual."."""
    width, _, _, patch = shape_of(state, "visual.conv1.weight", 4)
    cells, _ = shape_of(state, "visual.positional_embedding", 2)
    return {
        "dim": width,
        "depth": count_layers(state, "visual.transformer.resblocks", "ln_1.weight"),
        "num_heads": tower_num_heads(width, config, "num_heads", "vision_cfg", "vision_heads", infer_image_num_heads),
        "mlp_dim": shape_of(state, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "patch_size": patch,
        "grid": infer_grid(cells - 1, config_grid(config, patch), "visual.positional_embedding"),
    }


def text_shape(state: State, config: OfficialConfig, prefix: str = "") -> dict[str, Any]:
    """The constructor arguments of the text encoder under an official prefix."""
    words, width = shape_of(state, f"{prefix}token_embedding.weight", 2)
    return {
        "text_dim": width,
        "text_depth": count_layers(state, f"{prefix}transformer.resblocks", "ln_1.weight"),
        "text_num_heads": tower_num_heads(width, config, "text_num_heads", "text_cfg", "transformer_heads"),
        "text_mlp_dim": shape_of(state, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "vocab_size": words,
        "text_length": shape_of(state, f"{prefix}positional_embedding", 2)[0],
        "embed_dim": shape_of(state, f"{prefix}text_projection", 2)[1],
    }


def activation(config: OfficialConfig, default: str) -> str:
    """The activation: by open_clip's key `quick_gelu`, or by name."""
    if "quick_gelu" in config:
        return "quick_gelu" if config["quick_gelu"] else "gelu"
    named = str(config.get("activation", default)).lower().replace("_", "")
    return "quick_gelu" if named.startswith("quickgelu") else "gelu"


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of CLIP for a checkpoint under official names. Raises WeightsError."""
    return image_shape(state, config) | text_shape(state, config) | {"activation": activation(config, "quick_gelu")}


def pretraining_step(model: CLIP | CLIPResNet) -> Pretraining:
    """The training step of either form of CLIP: the ITC loss."""
    return Pretraining(model, model.pretraining_heads(), [ITCLoss()])


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a checkpoint."""
    return pretraining_step(config_of(CLIPConfig, arguments).build())


def _is_open_clip(config: OfficialConfig) -> bool:
    """Whether a config is open_clip's: it is nested, or sets the activation, which OpenAI's code does not allow."""
    return "vision_cfg" in config or "quick_gelu" in config


ADAPTER = CheckpointAdapter(
    name="clip",
    config_class=CLIPConfig,
    matches=lambda state: "visual.class_embedding" in state and "token_embedding.weight" in state,
    matches_config=lambda config: not _is_open_clip(config),
    task=task,
    infer=infer,
    names=names,
    build=build,
    positions=(AbsolutePositions("visual.positional_embedding", "model.image.patches.position", resize_bicubic),),
)
OPEN_CLIP = replace(
    ADAPTER,
    name="open_clip",
    matches_config=_is_open_clip,
    infer=lambda state, config: infer(state, config) | {"activation": activation(config, "gelu")},
)
