"""VLMo's official checkpoints: weight names, sizes inferred from shapes, and the training step of each task.

There are both stages of pre-training (text-only MLM, then image-text), and the downstream tasks.
"""

from __future__ import annotations

import math
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
    infer_num_heads,
    shape_of,
    task_by_prefix,
)
from diptych.checkpoints.mapping import KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig, stated
from diptych.checkpoints.positions import AbsolutePositions, RelativeBias
from diptych.checkpoints.read import WeightsError
from diptych.models.vilt.checkpoint import HEADS, OUTSIDE_BLOCKS, classifier
from diptych.models.vlmo.config import VLMoConfig
from diptych.models.vlmo.model import ITC_HEADS, VLMo
from diptych.modules.position import resize_bicubic_plain
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval_training import ContrastRetrieval
from diptych.tasks.vqa import ClosedVQA

TABLE = "relative_position_bias_table"
TEXTS = 196  # tokens of the longest text in the published tables of relative positions


def _expert(official: str, ours: str) -> dict[str, str]:
    return {
        **weight_and_bias(f"norm2_{official}", f"{ours}.norm"),
        **weight_and_bias(f"mlp_{official}.fc1", f"{ours}.feedforward.fc1"),
        **weight_and_bias(f"mlp_{official}.fc2", f"{ours}.feedforward.fc2"),
    }


BLOCK = {
    **weight_and_bias("norm1", "norm"),
    "attn.qkv.weight": "attention.qkv.weight",
    "attn.q_bias": "attention.query_bias",
    "attn.v_bias": "attention.value_bias",
    **weight_and_bias("attn.proj", "attention.out"),
    "gamma_1": "add_attended.scale",
    "gamma_2": "add_fed.scale",
    **_expert("text", "modality_ffn.text"),
    **_expert("imag", "modality_ffn.image"),
    **_expert("vl", "vl_ffn"),
}
INDEX = "recomputed from the sizes: the row of the table for each pair of tokens"
MODEL = OUTSIDE_BLOCKS | KeyMapping(
    prefixed("transformer.blocks.{i}.", "model.transformer.blocks.{i}.", BLOCK)
    | {TABLE: "model.transformer.positions.table"},
    ignored=dict.fromkeys(
        ("relative_position_index", "text_relative_position_index", "text_imag_relative_position_index"), INDEX
    ),
)
WITHOUT_POSITIONS = KeyMapping(
    {}, ignored={"text_embeddings.position_embeddings.weight": "unused: positions are relative, in attention"}
)


def _contrast(official: str, scale: str, ours: str) -> KeyMapping:
    return KeyMapping(
        {
            f"{official}_text_proj.fc.weight": f"{ours}.text.weight",
            f"{official}_image_proj.fc.weight": f"{ours}.image.weight",
            scale: f"{ours}.scale.log",
        }
    )


OWN, BOTH = (
    _contrast("itc", "logit_scale", f"heads.{ITC_HEADS[0]}"),
    _contrast("itc_vl", "logit_vl_scale", f"heads.{ITC_HEADS[1]}"),
)
TASKS = {
    "pretraining": MODEL | HEADS | OWN | BOTH,
    "vqa": MODEL | classifier("vqa_classifier"),
    "nlvr2": MODEL | classifier("nlvr2_classifier"),
    "retrieval": MODEL | OWN,
    "encoder": MODEL,
}
TASK_PREFIXES = {
    "vqa_classifier.": "vqa",
    "nlvr2_classifier.": "nlvr2",
    "mlm_score.": "pretraining",
    "itm_score.": "pretraining",
    "itc_vl_": "pretraining",
    "itc_": "retrieval",
}
"""The task of an official checkpoint, by the prefix of its head."""


def task(state: State) -> str:
    """The task that a checkpoint under official names was trained for; "encoder" if it has no head."""
    return task_by_prefix(state, TASK_PREFIXES)


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments, trained for this task."""
    return TASKS[task] | WITHOUT_POSITIONS if arguments["relative_position"] else TASKS[task]


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of VLMo for a checkpoint under official names. Raises WeightsError."""
    vocabulary, width = shape_of(state, "text_embeddings.word_embeddings.weight", 2)
    depth = count_layers(state, "transformer.blocks", "norm1.weight")
    in_table = shape_of(state, TABLE, 2)[1] // max(depth, 1) if TABLE in state else None
    return {
        "dim": width,
        "depth": depth,
        "num_heads": infer_num_heads(width, config, "num_heads", "heads", "num_heads", published=in_table),
        "mlp_dim": shape_of(state, "transformer.blocks.0.mlp_text.fc1.weight", 2)[0],
        "vl_start_layer": depth - count_layers(state, "transformer.blocks", "norm2_vl.weight"),
        "patch_size": shape_of(state, "transformer.patch_embed.proj.weight", 4)[-1],
        "vocab_size": vocabulary,
        "num_images": shape_of(state, "token_type_embeddings.weight", 2)[0] - 1,
        "relative_position": TABLE in state,
        "layer_scale": 0.1 if "transformer.blocks.0.gamma_1" in state else 0.0,
        "num_itc_branches": 1 if has_prefix(state, "itc_") and not has_prefix(state, "itc_vl_") else 2,
        **(_relative_positions(state, config) if TABLE in state else _absolute_positions(state, config)),
    }


def _relative_positions(state: State, config: OfficialConfig) -> dict[str, Any]:
    """Position grid and text length of a model with relative positions. Raises WeightsError.

    The number of rows of the table determines only both together: the text length is `max_text_len_of_initckpt` of the
    config, or the published 196.
    """
    rows, _ = shape_of(state, TABLE, 2)
    length = stated(config, "text_length", "max_text_len_of_initckpt") or TEXTS
    side = (math.isqrt(max(rows - 5 - 2 * length, 0)) + 1) // 2
    grid = config_grid(config) or (side, side)
    if (2 * grid[0] - 1) * (2 * grid[1] - 1) + 5 + 2 * length != rows:
        image = "a square image" if grid == (side, side) else f"an image of {grid[0]} × {grid[1]} patches"
        raise WeightsError(f"{TABLE} has {rows} rows, which do not fit {image} with texts of {length} tokens")
    return {"grid": grid, "text_length": length}


def _absolute_positions(state: State, config: OfficialConfig) -> dict[str, Any]:
    """Position grid and text length of a model with absolute positions. Raises WeightsError."""
    *_, cells, _ = shape_of(state, "transformer.pos_embed", 3)
    return {
        "grid": infer_grid(cells - 1, config_grid(config), "transformer.pos_embed"),
        "text_length": shape_of(state, "text_embeddings.position_embeddings.weight", 2)[0],
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a checkpoint (`state` under our names), or the model under "model" if it has no head.

    In pre-training, the step has the heads of the checkpoint and their objectives.
    """
    model = config_of(VLMoConfig, arguments).build()
    if task == "vqa":
        return ClosedVQA(model, model.dim, shape_of(state, "head.answers.weight", 2)[0])
    if task == "nlvr2":
        return NLVR2(model, model.dim)
    if task == "retrieval":
        contrast: Any = model.pretraining_heads()[ITC_HEADS[0]]
        return ContrastRetrieval(model, contrast)
    if task == "pretraining":
        text_only = arguments["vl_start_layer"] == arguments["depth"]
        return _pretraining(model, {name.split(".")[1] for name in state if name.startswith("heads.")}, text_only)
    return nn.ModuleDict({"model": model})


def _pretraining(model: VLMo, present: set[str], text_only: bool) -> Pretraining:
    heads = nn.ModuleDict({name: head for name, head in model.pretraining_heads().items() if name in present})
    contrasts = tuple(name for name in ITC_HEADS if name in present)
    objectives: list[Objective] = [ITCLoss(head_names=contrasts)] if contrasts else []
    if "itm" in present:
        objectives.append(HardNegativeITMLoss())
    if "mlm" in present:
        objectives.append(MLMLoss(text_only=True) if text_only else MLMLoss(weight=0.25))
    return Pretraining(model, heads, objectives)


ADAPTER = CheckpointAdapter(
    name="vlmo",
    config_class=VLMoConfig,
    matches=lambda state: "transformer.blocks.0.mlp_imag.fc1.weight" in state,
    task=task,
    infer=infer,
    names=names,
    build=build,
    model_prefix="state_dict",
    positions=(
        RelativeBias(TABLE, "model.transformer.positions.table", 5 + 2 * TEXTS),
        AbsolutePositions("transformer.pos_embed", "model.patches.position", resize_bicubic_plain),
    ),
)
