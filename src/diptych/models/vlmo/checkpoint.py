"""VLMo's weights: the official names, for both stages of pre-training and each downstream task."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    OfficialConfig,
    State,
    count,
    first_marker,
    grid_of,
    heads_of,
    shape,
)
from diptych.checkpoints.mapping import KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.positions import Absolute, Relative
from diptych.checkpoints.read import WeightsError
from diptych.models.vilt.checkpoint import AROUND, HEADS, classifier
from diptych.models.vlmo.model import CONTRASTS, VLMo
from diptych.modules.position import resize_bicubic_plain
from diptych.objectives.itc import ITC
from diptych.objectives.itm import HardNegativeITM
from diptych.objectives.mlm import MLM
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval import ContrastRetrieval
from diptych.tasks.vqa import ClosedVQA

TABLE = "relative_position_bias_table"
TEXTS = 196  # pieces of the longest texts that published tables are for


def _expert(official: str, ours: str) -> dict[str, str]:
    return {
        **weight_and_bias(f"norm2_{official}", f"{ours}.norm"),
        **weight_and_bias(f"mlp_{official}.fc1", f"{ours}.feedforward.grow"),
        **weight_and_bias(f"mlp_{official}.fc2", f"{ours}.feedforward.shrink"),
    }


BLOCK = {
    **weight_and_bias("norm1", "norm"),
    "attn.qkv.weight": "attention.qkv.weight",
    "attn.q_bias": "attention.query_bias",
    "attn.v_bias": "attention.value_bias",
    **weight_and_bias("attn.proj", "attention.out"),
    "gamma_1": "add_attended.scale",
    "gamma_2": "add_fed.scale",
    **_expert("text", "apart.text"),
    **_expert("imag", "apart.image"),
    **_expert("vl", "together"),
}
INDEX = "made anew from the sizes: which row of the table belongs to which two tokens"
MODEL = AROUND | KeyMapping(
    prefixed("transformer.blocks.{i}.", "model.transformer.blocks.{i}.", BLOCK)
    | {TABLE: "model.transformer.positions.table"},
    ignored=dict.fromkeys(
        ("relative_position_index", "text_relative_position_index", "text_imag_relative_position_index"), INDEX
    ),
)
PLACELESS = KeyMapping(
    {}, ignored={"text_embeddings.position_embeddings.weight": "positions stand in attention, nothing reads it"}
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
    _contrast("itc", "logit_scale", f"heads.{CONTRASTS[0]}"),
    _contrast("itc_vl", "logit_vl_scale", f"heads.{CONTRASTS[1]}"),
)
TASKS = {
    "pretraining": MODEL | HEADS | OWN | BOTH,
    "vqa": MODEL | classifier("vqa_classifier"),
    "nlvr2": MODEL | classifier("nlvr2_classifier"),
    "retrieval": MODEL | OWN,
    "encoder": MODEL,
}
MARKS = {
    "vqa_classifier.": "vqa",
    "nlvr2_classifier.": "nlvr2",
    "mlm_score.": "pretraining",
    "itm_score.": "pretraining",
    "itc_vl_": "pretraining",
    "itc_": "retrieval",
}
"""What an official checkpoint was trained for, by the head it carries."""


def task(state: State) -> str:
    """What an officially named checkpoint was trained for; "encoder" where it has no head."""
    return first_marker(state, MARKS)


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of names for a model of these arguments, trained for this task."""
    return TASKS[task] | PLACELESS if arguments["relative"] else TASKS[task]


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
    """The arguments of models.vlmo.VLMo that an officially named checkpoint was made with. Raises WeightsError."""
    vocabulary, width = shape(state, "text_embeddings.word_embeddings.weight", 2)
    depth = count(state, "transformer.blocks", "norm1.weight")
    heads = told.get("heads", told.get("num_heads"))
    if heads is None and TABLE in state:
        heads = shape(state, TABLE, 2)[1] // max(depth, 1)
    return {
        "dim": width,
        "depth": depth,
        "num_heads": heads_of(width, heads),
        "mlp_dim": shape(state, "transformer.blocks.0.mlp_text.fc1.weight", 2)[0],
        "vl_start_layer": depth - count(state, "transformer.blocks", "norm2_vl.weight"),
        "patch_size": shape(state, "transformer.patch_embed.proj.weight", 4)[-1],
        "vocab_size": vocabulary,
        "num_images": shape(state, "token_type_embeddings.weight", 2)[0] - 1,
        "relative": TABLE in state,
        "scale": 0.1 if "transformer.blocks.0.gamma_1" in state else 0.0,
        "num_itc_branches": 1 if _marked(state, "itc_") and not _marked(state, "itc_vl_") else 2,
        **(_reach(state, told) if TABLE in state else _absolute(state, told)),
    }


def _marked(state: State, mark: str) -> bool:
    return any(name.startswith(mark) for name in state)


def _reach(state: State, told: OfficialConfig) -> dict[str, Any]:
    """How far apart patches and words may be. The table tells only the two together: as told, or as published."""
    rows, _ = shape(state, TABLE, 2)
    length = told.get("max_text_len_of_initckpt", TEXTS)
    side = (math.isqrt(max(rows - 5 - 2 * length, 0)) + 1) // 2
    grid = told.get("grid") or (side, side)
    if (2 * grid[0] - 1) * (2 * grid[1] - 1) + 5 + 2 * length != rows:
        of = "no square image" if grid == (side, side) else f"no image of {grid[0]} × {grid[1]} patches"
        raise WeightsError(f"{TABLE} has {rows} rows, which are of {of} beside texts of {length} tokens")
    return {"grid": grid, "text_length": length}


def _absolute(state: State, told: OfficialConfig) -> dict[str, Any]:
    *_, cells, _ = shape(state, "transformer.pos_embed", 3)
    return {
        "grid": grid_of(cells - 1, told.get("grid"), "transformer.pos_embed"),
        "text_length": shape(state, "text_embeddings.position_embeddings.weight", 2)[0],
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that an imported checkpoint (`state`, our names) was trained in; a pre-training one has the heads that
    the checkpoint holds, and their objectives. A model without heads stands under "model" alone.
    """
    model = VLMo(**arguments)
    if task == "vqa":
        return ClosedVQA(model, model.dim, shape(state, "head.answers.weight", 2)[0])
    if task == "nlvr2":
        return NLVR2(model, model.dim)
    if task == "retrieval":
        contrast: Any = model.pretraining_heads()[CONTRASTS[0]]
        return ContrastRetrieval(model, contrast)
    if task == "pretraining":
        before_images = arguments["vl_start_layer"] == arguments["depth"]
        return _pretraining(model, {name.split(".")[1] for name in state if name.startswith("heads.")}, before_images)
    return nn.ModuleDict({"model": model})


def _pretraining(model: VLMo, present: set[str], before_images: bool) -> Pretraining:
    heads = nn.ModuleDict({name: head for name, head in model.pretraining_heads().items() if name in present})
    contrasts = tuple(name for name in CONTRASTS if name in present)
    objectives: list[Objective] = [ITC(head_names=contrasts)] if contrasts else []
    if "match" in present:
        objectives.append(HardNegativeITM())
    if "words" in present:
        objectives.append(MLM(text_only=True) if before_images else MLM(weight=0.25))
    return Pretraining(model, heads, objectives)


SYSTEM = CheckpointAdapter(
    name="vlmo",
    matches=lambda state: "transformer.blocks.0.mlp_imag.fc1.weight" in state,
    task=task,
    infer=infer,
    names=names,
    build=build,
    model_prefix="state_dict",
    positions=(
        Relative(TABLE, "model.transformer.positions.table", 5 + 2 * TEXTS),
        Absolute("transformer.pos_embed", "model.patches.position", resize_bicubic_plain),
    ),
)
