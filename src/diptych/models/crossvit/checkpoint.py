"""CrossViT's official checkpoints: weight names with either patch embedding, and sizes inferred from shapes.

timm's names are translated to the official ones (models.huggingface.layouts).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    State,
    config_of,
    count_layers,
    has_prefix,
    infer_grid,
    shape_of,
)
from diptych.checkpoints.mapping import KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig, stated
from diptych.checkpoints.read import WeightsError
from diptych.models.crossvit.config import CrossViTConfig
from diptych.tasks.classification import Classification

BLOCK = {
    **weight_and_bias("norm1", "norm1"),
    **weight_and_bias("attn.qkv", "attention.qkv"),
    **weight_and_bias("attn.proj", "attention.out"),
    **weight_and_bias("norm2", "norm2"),
    **weight_and_bias("mlp.fc1", "feedforward.fc1"),
    **weight_and_bias("mlp.fc2", "feedforward.fc2"),
}
CLASS_ATTENTION = {
    **weight_and_bias("norm1", "norm"),
    **weight_and_bias("attn.wq", "attention.query"),
    **weight_and_bias("attn.wk", "attention.key"),
    **weight_and_bias("attn.wv", "attention.value"),
    **weight_and_bias("attn.proj", "attention.out"),
}


def _stage(blocks: tuple[int, int], exchanges: int) -> dict[str, str]:
    table: dict[str, str] = {}
    for i in (0, 1):
        for j in range(blocks[i]):
            table |= prefixed(f"blocks.{i}.{j}.", f"blocks.{i}.{j}.", BLOCK)
        for j in range(max(1, exchanges)):  # a single one is not in a list
            official = f"fusion.{i}.{j}." if exchanges else f"fusion.{i}."
            table |= prefixed(official, f"exchange.{i}.layers.{j}.", CLASS_ATTENTION)
        for official, ours in (("projs", "out"), ("revert_projs", "back")):
            table |= weight_and_bias(f"{official}.{i}.0", f"exchange.{i}.{ours}.0")
            table |= weight_and_bias(f"{official}.{i}.2", f"exchange.{i}.{ours}.2")
    return table


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments."""
    table: dict[str, str] = {}
    for i in (0, 1):
        table |= {f"pos_embed.{i}": f"model.patches.{i}.position", f"cls_token.{i}": f"model.patches.{i}.cls"}
        for part in ("proj.0", "proj.2", "proj.4") if arguments["stem"] else ("proj",):
            table |= weight_and_bias(f"patch_embed.{i}.{part}", f"model.patches.{i}.{part.replace('proj', 'project')}")
        table |= weight_and_bias(f"norm.{i}", f"model.norms.{i}") | weight_and_bias(f"head.{i}", f"model.head.{i}")
    for n, (small, large, exchanges) in enumerate(arguments["stages"]):
        table |= prefixed(f"blocks.{n}.", f"model.stages.{n}.", _stage((small, large), exchanges))
    return KeyMapping(table)


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of CrossViT for a checkpoint under official names. Raises WeightsError.

    Two sizes cannot be inferred from shapes: the number of heads is `num_heads` of the config, or one for every 32
    features of the narrow branch, as published; the patch sizes of a convolutional stem are `patch_size` of the config,
    or the published 12 and 16.
    """
    widths = tuple(shape_of(state, f"cls_token.{i}", 3)[2] for i in (0, 1))
    stem = has_prefix(state, "patch_embed.0.proj.0.")
    if stem:
        patches = _pair(stated(config, "patch_sizes", "patch_size") or (12, 16), "patch size")
    else:
        patches = tuple(shape_of(state, f"patch_embed.{i}.proj.weight", 4)[3] for i in (0, 1))
    sides = (infer_grid(shape_of(state, f"pos_embed.{i}", 3)[1] - 1, None, f"pos_embed.{i}")[0] for i in (0, 1))
    heads = stated(config, "num_heads", "num_heads")
    return {
        "image_sizes": tuple(side * patch for side, patch in zip(sides, patches, strict=True)),
        "patch_sizes": patches,
        "dims": widths,
        "num_heads": _pair(widths[0] // 32 if heads is None else heads, "number of heads"),
        "mlp_dims": tuple(shape_of(state, f"blocks.0.blocks.{i}.0.mlp.fc1.weight", 2)[0] for i in (0, 1)),
        "stages": tuple(
            _depths(state, f"blocks.{n}") for n in range(count_layers(state, "blocks", "projs.0.0.weight"))
        ),
        "stem": stem,
        "num_classes": shape_of(state, "head.0.weight", 2)[0],
    }


def _depths(state: State, stage: str) -> tuple[int, int, int]:
    small, large = (count_layers(state, f"{stage}.blocks.{i}", "norm1.weight") for i in (0, 1))
    return small, large, count_layers(state, f"{stage}.fusion.0", "norm1.weight")


def _pair(value: object, what: str) -> tuple[int, int]:
    """`value` for each of the two branches: one number for both, or a list of two. Raises WeightsError."""
    numbers = value if isinstance(value, (list, tuple)) else (value, value)
    pair = [n for n in numbers if isinstance(n, int) and n > 0]
    if len(pair) != 2:
        raise WeightsError(f"the {what} is {value!r}; expected one number for both branches, or one for each")
    return pair[0], pair[1]


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a checkpoint."""
    for i, (width, heads) in enumerate(zip(arguments["dims"], arguments["num_heads"], strict=True)):
        if width % heads:
            raise WeightsError(
                f"width {width} of branch {i} does not divide into {heads} heads; give another --num_heads"
            )
    return Classification(config_of(CrossViTConfig, arguments).build(), arguments["num_classes"])


ADAPTER = CheckpointAdapter(
    name="crossvit",
    config_class=CrossViTConfig,
    matches=lambda state: "cls_token.0" in state and "blocks.0.revert_projs.0.0.weight" in state,
    task=lambda state: "classification",
    names=names,
    infer=infer,
    build=build,
)
