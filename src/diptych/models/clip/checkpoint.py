"""CLIP's weights, of the ViT form: OpenAI's names (the state_dict of its archive), which are open_clip's too.

The activation stands in no shape: an OpenAI checkpoint has QuickGELU, an open_clip one GELU unless its config says
`quick_gelu`. So both are systems here, of the same names: "clip" and "open_clip".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    OfficialConfig,
    State,
    count,
    grid_of,
    heads_of,
    image_heads,
    shape,
)
from diptych.checkpoints.mapping import FLAT, ONE, ONES, TURNED, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.positions import Absolute
from diptych.models.clip.model import CLIP
from diptych.models.clip.resnet import CLIPResNet
from diptych.modules.position import resize_bicubic
from diptych.objectives.itc import ITC
from diptych.objectives.pretraining import Pretraining

RESBLOCK = {
    "attn.in_proj_weight": "attention.qkv.weight",
    "attn.in_proj_bias": "attention.qkv.bias",
    **weight_and_bias("attn.out_proj", "attention.out"),
    **weight_and_bias("ln_1", "norm1"),
    **weight_and_bias("ln_2", "norm2"),
    **weight_and_bias("mlp.c_fc", "feedforward.grow"),
    **weight_and_bias("mlp.c_proj", "feedforward.shrink"),
}
"""OpenAI's names of a pre-norm block."""

SIZES: dict[str, str] = dict.fromkeys(
    ("input_resolution", "context_length", "vocab_size"), "a size, kept as a number in OpenAI's archive"
)


def blocks(official: str, ours: str) -> dict[str, str]:
    """The blocks of one tower."""
    return prefixed(f"{official}resblocks.{{i}}.", f"{ours}blocks.{{i}}.", RESBLOCK)


def text_names(official: str = "") -> KeyMapping:
    """The text tower, under a prefix, and its projection."""
    ours = {
        "token_embedding.weight": "model.text.word.weight",
        "positional_embedding": "model.text.position",
        **blocks("transformer.", "model.text."),
        **weight_and_bias("ln_final", "model.text.norm"),
        "text_projection": "heads.contrast.text.weight",
    }
    return KeyMapping(prefixed(official, "", ours), forms={f"{official}text_projection": TURNED})


PATCHES = KeyMapping(
    {
        "visual.conv1.weight": "model.image.patches.project.weight",
        "visual.class_embedding": "model.image.patches.cls",
        "visual.positional_embedding": "model.image.patches.position",
        **weight_and_bias("visual.ln_pre", "model.image.norm"),
        **blocks("visual.transformer.", "model.image."),
    },
    forms={"visual.conv1.weight": FLAT, "visual.class_embedding": ONES, "visual.positional_embedding": ONE},
)
"""A ViT as OpenAI names it, up to its last block."""

PROJECTED = KeyMapping(
    {"visual.proj": "heads.contrast.image.weight", "logit_scale": "heads.contrast.scale.log"},
    forms={"visual.proj": TURNED},
)
NAMES = (
    text_names()
    | PATCHES
    | PROJECTED
    | KeyMapping(weight_and_bias("visual.ln_post", "model.image_norm"), ignored=SIZES)
)


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of names that a checkpoint is read and written by."""
    return NAMES


def task(state: State) -> str:
    """Contrast is all that CLIP is trained for."""
    return "pretraining"


def part(told: OfficialConfig, name: str) -> OfficialConfig:
    """One tower's own settings, where a config is nested as open_clip's."""
    found = told.get(name)
    return found if isinstance(found, Mapping) else {}


def heads_told(
    dim: int, told: OfficialConfig, nested: OfficialConfig, flat: str, published: Callable[..., int] = heads_of
) -> int:
    """Attention heads of one tower: by name or rule, by their width, or the `published` number of this width."""
    heads = nested.get("heads", told.get(flat, told.get("num_heads")))
    if isinstance(heads, str) and heads.endswith("// 64"):  # OpenAI's own rule, which rounds down
        heads = dim // 64
    if isinstance(head_width := nested.get("head_width"), int) and head_width > 0:
        heads = dim // head_width
    return published(dim, heads if isinstance(heads, int) else None)


def image_shape(state: State, told: OfficialConfig) -> dict[str, Any]:
    """Sizes of the ViT under "visual."."""
    width, _, _, patch = shape(state, "visual.conv1.weight", 4)
    cells, _ = shape(state, "visual.positional_embedding", 2)
    nested = part(told, "vision_cfg")
    size = nested.get("image_size")
    lies = tuple(side // patch for side in size) if isinstance(size, list) else told.get("grid")
    return {
        "dim": width,
        "depth": count(state, "visual.transformer.resblocks", "ln_1.weight"),
        "num_heads": heads_told(width, told, nested, "vision_heads", image_heads),
        "mlp_dim": shape(state, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "patch_size": patch,
        "grid": grid_of(cells - 1, lies, "visual.positional_embedding"),
    }


def text_shape(state: State, told: OfficialConfig, prefix: str = "") -> dict[str, Any]:
    """Sizes of the text tower under a prefix."""
    words, width = shape(state, f"{prefix}token_embedding.weight", 2)
    return {
        "text_dim": width,
        "text_depth": count(state, f"{prefix}transformer.resblocks", "ln_1.weight"),
        "text_num_heads": heads_told(width, told, part(told, "text_cfg"), "transformer_heads"),
        "text_mlp_dim": shape(state, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "vocab_size": words,
        "text_length": shape(state, f"{prefix}positional_embedding", 2)[0],
        "embed_dim": shape(state, f"{prefix}text_projection", 2)[1],
    }


def activation(told: OfficialConfig, default: str) -> str:
    """As open_clip's `quick_gelu` tells it, or a name of the activation."""
    if "quick_gelu" in told:
        return "quick_gelu" if told["quick_gelu"] else "gelu"
    named = str(told.get("activation", default)).lower().replace("_", "")
    return "quick_gelu" if named.startswith("quickgelu") else "gelu"


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
    """The arguments of models.clip.CLIP. Raises WeightsError."""
    return image_shape(state, told) | text_shape(state, told) | {"activation": activation(told, "quick_gelu")}


def contrasting(model: CLIP | CLIPResNet) -> Pretraining:
    """The step that every form of CLIP was trained in."""
    return Pretraining(model, model.pretraining_heads(), [ITC()])


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that a checkpoint was trained in."""
    return contrasting(CLIP(**arguments))


def _of_open_clip(told: OfficialConfig) -> bool:
    """Whether settings are open_clip's: nested, or of an activation that OpenAI's code does not let one choose."""
    return "vision_cfg" in told or "quick_gelu" in told


SYSTEM = CheckpointAdapter(
    name="clip",
    matches=lambda state: "visual.class_embedding" in state and "token_embedding.weight" in state,
    matches_config=lambda told: not _of_open_clip(told),
    task=task,
    infer=infer,
    names=names,
    build=build,
    positions=(Absolute("visual.positional_embedding", "model.image.patches.position", resize_bicubic),),
)
OPEN_CLIP = replace(
    SYSTEM,
    name="open_clip",
    matches_config=_of_open_clip,
    infer=lambda state, told: infer(state, {"quick_gelu": False, **told}),
)
